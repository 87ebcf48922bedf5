"""Mixed precision by measurement: int8 for every module, and better where that saves the most damage for its cost."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Converted, Options, Quantized, SensitivityRows, recipe, stored_bytes
from dinoquant.recipes.int8.assemble import BF16, FP32, PER_TOKEN, PRECISIONS, STATIC, assemble
from dinoquant.recipes.int8.calibration import observe, require_images

log = logging.getLogger("dinoquant")

# Time per multiply-add relative to int8's, about as on processors with AVX512-VNNI and AVX512-BF16. Only their order
# and rough size matter: they rank modules, and no time is promised from them.
COSTS: Mapping[str, float] = {STATIC: 1.0, PER_TOKEN: 1.25, BF16: 2.0, FP32: 4.0}
ONE_SIDED_95 = 1.645  # standard deviations
BATCH = 16


@dataclass(frozen=True)
class Choice:
    """A module, the precision chosen for it, and why."""

    name: str
    macs: int
    damages: Mapping[str, float]  # 1 - mean cosine with this module alone in a precision; bf16 and fp32: 0
    excluded: frozenset[str]  # precisions in which this module alone loses too much k-NN accuracy
    precision: str
    why: str

    @property
    def damage(self) -> float:
        """Return the damage in the precision chosen."""
        return self.damages[self.precision]

    @property
    def better(self) -> str | None:
        """Return the next precision that does less damage, None if there is none."""
        higher = [p for p in PRECISIONS[PRECISIONS.index(self.precision) + 1 :] if p not in self.excluded]
        return next((precision for precision in higher if self.damages[precision] < self.damage), None)

    @property
    def worth(self) -> float:
        """Return the damage that the next better precision saves, per multiply-add in int8 that it costs more."""
        if self.better is None:
            return 0.0
        cost = self.macs * (COSTS[self.better] - COSTS[self.precision])
        return (self.damage - self.damages[self.better]) / cost

    def raised(self, precision: str, reason: str) -> "Choice":
        """Return the choice of a higher ``precision``."""
        alone = ", ".join(
            f"as {below} {self.damages[below]:.2g}"
            for below in PRECISIONS[: PRECISIONS.index(precision)]
            if self.damages[below] > 0
        )
        return replace(self, precision=precision, why=f"{precision}: {alone or 'no damage'} alone, {reason}")


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Choose a precision for each Linear and the patch embedding, and keep the features within the budget.

    The damage of a choice is predicted as what attention does, plus what each of its modules does alone: their errors
    are nearly independent, and 1 - cosine grows with an error's square. It is then measured, and the choice improved
    until that is inside too. Both are needed: the images that are measured on are those that the scales were fitted to.

    :param calibration: float32 ``[N, 3, S, S]``, normalised; on these the cosine is measured.
    :param sensitivity: what `dinoquant.judge.sensitivity` found for this model, on other images.

    Raises UserError without calibration images, where not even float32 keeps the budget, for a table of another model,
    or for a transformer built otherwise than DINO's.
    """
    images, names = require_images("int8-auto", calibration), targets(model)
    reference, allowed = _features(model, images), 1 - options["cosine"]
    unquantized, _ = assemble(model, dict.fromkeys(names, FP32), {}, options["attention"], options["portable"])
    floor = _damage(unquantized, images, reference)
    if not floor <= allowed:  # written so that NaN fails too
        raise UserError(
            f"cosine: {options['cosine']} cannot be kept: with every module in float32 and attention in "
            f"{options['attention']} it is {1 - floor:.7f}. Lower the variant's cosine"
            + ("." if options["attention"] == FP32 else ", or set its attention to fp32.")
        )
    choices = raise_precisions(cheapest(names, sensitivity, options["knn_drop"]), allowed - floor)
    seen = observe(model, images)
    while True:
        precisions = {choice.name: choice.precision for choice in choices}
        changed, became = assemble(model, precisions, seen, options["attention"], options["portable"])
        measured = _damage(changed, images, reference)
        predicted = sum(choice.damage for choice in choices)
        log.info("%s: 1 - cosine %.2g predicted, %.2g measured", _counts(choices), floor + predicted, measured)
        if not measured > allowed:
            break
        choices = _after_a_miss(choices, predicted * (allowed - floor) / (measured - floor))
    explained = {
        choice.name: replace(became.get(choice.name, _untouched(model, choice.name)), why=choice.why)
        for choice in choices
    }
    asked = {"Linear", "Conv2d"} if set(precisions.values()) != {FP32} else set()
    return Quantized(changed, asked=asked, became=became | explained, packs_on_loading=True)


def cheapest(names: Sequence[str], table: SensitivityRows, knn_drop: float) -> list[Choice]:
    """Return for each module the fastest precision in which it alone loses no more k-NN top-1 than ``knn_drop`` points.

    Raises UserError for a module that the table lacks.
    """
    choices = []
    for name in names:
        rows = {row["precision"]: row for row in table if row["module"] == name}
        if not {STATIC, PER_TOKEN} <= rows.keys():
            raise UserError(
                f"results/sensitivity.csv has no rows for {name}: it is about another model. Delete the file; the next "
                "run measures it again."
            )
        damages = {precision: max(0.0, 1 - float(rows[precision]["cosine_mean"])) for precision in (STATIC, PER_TOKEN)}
        damages |= {BF16: 0.0, FP32: 0.0}
        why = f"{STATIC}: 1 - cosine {damages[STATIC]:.2g} alone, within the budget"
        excluded = frozenset(precision for precision in (STATIC, PER_TOKEN) if loses(rows[precision], knn_drop))
        choice = Choice(name, int(rows[STATIC]["macs"]), damages, excluded, STATIC, why)
        precision = next(precision for precision in PRECISIONS if precision not in excluded)
        if precision != STATIC:
            lost = float(rows[STATIC]["knn_top1_drop"])
            choice = choice.raised(precision, f"and as {STATIC} it loses {lost:.2g} points of k-NN top-1")
        choices.append(choice)
    return choices


def loses(row: Mapping[str, str], knn_drop: float) -> bool:
    """Tell whether a row's k-NN drop exceeds ``knn_drop`` points by more than chance.

    Of so few images a single one is worth more points than the budget. Had each changed prediction been as likely a
    gain as a loss, their balance would have the root of their number as its standard deviation (McNemar's test).
    Images without labels show no loss.
    """
    if not row["knn_agreement"]:
        return False
    images = int(row["images"])
    changed = (1 - float(row["knn_agreement"]) / 100) * images
    beyond = (float(row["knn_top1_drop"]) - knn_drop) / 100 * images
    return beyond > ONE_SIDED_95 * sqrt(changed)


def raise_precisions(choices: Sequence[Choice], allowed: float) -> list[Choice]:
    """Return the choices raised, the one that saves most for its cost first, until their damages add up to ``allowed``.

    0 raises all that do damage.
    """
    raised = {choice.name: choice for choice in choices}
    while sum(choice.damage for choice in raised.values()) > allowed:
        best = max(raised.values(), key=lambda choice: choice.worth)
        assert best.better is not None
        raised[best.name] = best.raised(best.better, "the most damage saved for its cost")
    return list(raised.values())


def _after_a_miss(choices: Sequence[Choice], allowed: float) -> list[Choice]:
    """Return choices whose damages add up to ``allowed``, or to 0 already: then everything in float32."""
    if any(choice.damage > 0 for choice in choices):
        return raise_precisions(choices, allowed)
    return [choice.raised(FP32, "but measured together the choice was not within the budget") for choice in choices]


def _features(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in torch.split(images, BATCH)])


def _damage(model: nn.Module, images: Tensor, reference: Tensor) -> float:
    return 1 - float(functional.cosine_similarity(_features(model, images), reference, dim=-1).mean())


def _untouched(model: nn.Module, name: str) -> Converted:
    return Converted(FP32, FP32, stored_bytes(model.get_submodule(name)))


def _counts(choices: Sequence[Choice]) -> str:
    chosen = [choice.precision for choice in choices]
    return ", ".join(f"{chosen.count(precision)} {precision}" for precision in PRECISIONS if precision in chosen)
