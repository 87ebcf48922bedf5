"""What a bad input is: how it is made and used, and which words the message has that the user gets."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snakemake.exceptions import WorkflowError

from dinoquant.errors import UserError


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    kind: str
    what: str
    words: str
    """Some that the message has to have."""
    use: Callable[[Path], str]
    """Make the input in a folder, which is also the working directory, use it, and say that it was accepted."""

    def message(self, folder: Path) -> str:
        """Return what the user is told; names below ``folder`` are shortened, so that it is the same everywhere."""
        before = Path.cwd()
        os.chdir(folder)
        try:
            said = self.use(folder)
        except (UserError, WorkflowError) as error:
            said = str(error)
        finally:
            os.chdir(before)
        # The lists of known names grow with the workflow, which is not what the page is about.
        said = re.sub(r"\(known: [^)]*\)", "(known: ...)", said.replace(f"{folder}/", ""))
        return re.sub(r"\s+", " ", said).strip()
