"""What rules take: inputs that depend on the recipe, and their smallest slice of the config."""

from dinoquant.report.figures.catalogue import CATALOGUE


def calibration(wildcards):
    """Return the images, for the recipes that are calibrated on some."""
    calibrated = recipe_of(wildcards.variant).calibrated
    return {"images": "results/data/images.npy", "manifest": "results/data/manifest.csv"} if calibrated else {}


def sensitivity_table(wildcards):
    """Return what each module alone loses, for the recipes that choose by it."""
    return {"sensitivity": "results/sensitivity.csv"} if recipe_of(wildcards.variant).sensitivity else {}


def whole_machine(wildcards):
    """Take every core of --cores, so that nothing runs beside a measurement; under Slurm the profile sees to it."""
    return workflow.cores


def timing(threads, batch_size):
    """Return what a timing depends on."""
    keys = ("rounds", "processes", "precision", "block_seconds", "warmup_seconds")
    protocol = {key: config["latency"][key] for key in keys} | {"seed": config["seed"]}
    return tidy({"protocol": protocol, "threads": threads, "batch_size": batch_size})


def converted_from(wildcards):
    """Return what the variant's model is made of: for a recipe of our own, that recipe's TorchScript file."""
    if compiled(wildcards.variant):
        return f"results/models/{wildcards.variant}/model.pt"
    return f"results/models/fp32/{runtimes.RUNTIMES[runtime_of(wildcards.variant)].source}"


def pooling_model(wildcards):
    """Return the file whose head makes features of another runtime's tokens."""
    peer = runtime_of(wildcards.variant) != runtimes.TORCHSCRIPT
    return "results/models/fp32/model.pt" if peer and config["model"]["output"] == "tokens" else []


def budget():
    """Return what is asked of a variant to be recommended; of tokens, the patches have to keep the cosine too."""
    tokens = config["model"]["output"] == "tokens" and PATCHES
    return config["budget"] | {"patch_cosine": config["budget"]["cosine"] if tokens else None}


def without_patches():
    """Return the variants that no device here runs, with the reasons."""
    return {
        variant: "; ".join(UNSUPPORTED[variant][device] for device in DEVICES)
        for variant in VARIANTS
        if not extraction_device(variant)
    }


def without_attention():
    """Return the variants of which there are no attention maps, with the reasons."""
    unseen = "only the operators of TorchScript files can be watched"
    peers = {variant: unseen for variant in VARIANTS if runtime_of(variant) != runtimes.TORCHSCRIPT}
    return without_patches() | peers


def figure_params(wildcards):
    """Return the part of the config that this figure shows; what it does not use must not redraw it."""
    figure = CATALOGUE[wildcards.figure]
    return tidy(
        {key: config["figures"][key] for key in ("palette", "font_scale", "dpi")}
        | {
            "needs": list(figure.needs),
            "variants": list(VARIANTS) if figure.variants else [],
            "batch_size": config["figures"]["batch_size"] if figure.batch_size else None,
            "without_attention": without_attention() if "attention" in figure.needs else {},
            "without_patches": without_patches() if "patches" in figure.needs else {},
            "substitute": ", ".join(SUBSTITUTES) or None,
        }
    )
