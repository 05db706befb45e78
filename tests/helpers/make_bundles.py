"""How the bundles in tests/bundle/kept/ were made: short searches on digits, slimmed ones, and an imported list.

    python tests/helpers/make_bundles.py        # adds those that are missing

A file that is there is never written again: it stands for what users of its version have. A new format adds files.
"""

import json
import tempfile
from pathlib import Path

import torch

from mapolicy import PolicyBundle, SearchConfig, recipes, search_policy
from mapolicy.models.features import deep_features
from mapolicy.policy.compress import slim
from mapolicy.policy.import_policy import import_policy
from mapolicy.transforms.basic import Normalisation
from mapolicy.transforms.transformation import Transformation
from tests.helpers.settings import PAPER

DATA = Path(__file__).resolve().parents[1] / "bundle" / "kept"
EXPECTED = DATA / "expected.json"
CPU = torch.device("cpu")

TINY = {"proxy": "vit_tiny_patch16_224", "model_args": {
    "img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}}  # fmt: skip
LIST = "[[('Rotate', 0.5, 0.75), ('Invert', 0.25, 0.0)], [('Color', 1.0, 0.5), ('Cutout', 0.5, 0.5)], []]"
MEAN_WEIGHT = {"sampler": "mean-weight", "weighting": "policy", "verify": False}
# Small, because all kept files lie in the repository: a policy of few numbers, 20 meta-validation images, few stages.
LEVELS = {"sampler": "alignment", "weighting": "equal", "verify": True, "level_bins": 2, "policy_input": "features",
    "train_per_class": 40, "validation_per_class": 2,
    "proxy": "vit_tiny_patch16_224", "model_args": TINY["model_args"] | {"embed_dim": 4}}  # fmt: skip
READING = {"resize": "pad", "interpolation": "bicubic", "alpha_background": "#808080", "value_range": "0:4095",
    "policy_input": "features", "train_per_class": 40, "validation_per_class": 2,
    "proxy": "vit_tiny_patch16_224", "model_args": TINY["model_args"] | {"embed_dim": 4}}  # fmt: skip
# name: settings that differ from the recipe for digits, and how the extractor is stored
BUNDLES = {
    "format-1-scalar": (TINY | MEAN_WEIGHT, "float32"),
    "format-1-per-layer": ({"proxy": "wrn10_1", "alpha": "per-layer"} | MEAN_WEIGHT, "float16"),
    "format-2-levels": (LEVELS, "float16"),
    "format-2-reading": (MEAN_WEIGHT | READING, "float16"),
}
# name: what the first of them is slimmed to
SLIM = {f"format-1-slim-{dtype}": dtype for dtype in ("float16", "bfloat16")}
DATASET_LEVEL = "format-1-dataset-level"


def make(settings: dict, dtype: str) -> PolicyBundle:
    _, values = recipes.load("search-digits")
    short = {"epochs": 2, "batch_size": 128, "threads": 1}
    bundle = search_policy(SearchConfig.from_mapping(values | PAPER | short | settings))
    extractor = bundle.manifest.extractor.model_copy(update={"dtype": dtype})
    return PolicyBundle.assemble(
        bundle.manifest.draft(extractor=extractor.model_dump()),
        policy={name.removeprefix("policy."): t for name, t in bundle.tensors.items() if name.startswith("policy.")},
        alpha=bundle.alpha,
        probabilities=bundle.probabilities,
        means=bundle.means,
        extractor={
            name.removeprefix("extractor."): t for name, t in bundle.tensors.items() if name.startswith("extractor.")
        },
        meta_validation=bundle.meta_validation,
        log_levels=bundle.log_levels,
    )


def fixed_batch() -> tuple[torch.Tensor, Transformation]:
    """Four gray images, uint8 [4, 1, 8, 8], and transformations with and without magnitudes."""
    images = (torch.arange(4 * 64).reshape(4, 1, 8, 8) * 37 % 256).to(torch.uint8)
    first, second = torch.tensor([0, 2, 5, 13]), torch.tensor([11, 0, 5, 3])
    return images, Transformation(first, second, torch.tensor([0.0, 7.5, -3.0, 10.0]), torch.tensor([2.5, 0, 9, -1]))


def raw_outputs(bundle: PolicyBundle) -> torch.Tensor:
    """What the bundle's policy network says of the fixed batch, float [4]."""
    images, transformation = fixed_batch()
    contract = bundle.manifest.input
    inputs = Normalisation(contract.mean, contract.std, CPU)(images)
    with torch.no_grad():
        features = deep_features(bundle.build_extractor(CPU), inputs)
        return bundle.build_policy()(features, transformation.embed())


if __name__ == "__main__":
    torch.set_num_threads(1)
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    for name, (settings, dtype) in BUNDLES.items():
        if name not in expected:
            bundle = make(settings, dtype)
            bundle.save(DATA / f"{name}.safetensors")
            expected[name] = {"digest": bundle.digest, "raw_outputs": raw_outputs(bundle).tolist()}
    for name, dtype in SLIM.items():
        if name not in expected:
            bundle, _ = slim(PolicyBundle.load(DATA / f"{next(iter(BUNDLES))}.safetensors"), dtype)
            bundle.save(DATA / f"{name}.safetensors")
            expected[name] = {"digest": bundle.digest, "raw_outputs": raw_outputs(bundle).tolist()}
    if DATASET_LEVEL not in expected:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "list").write_text(LIST, encoding="utf-8")
            policy = import_policy(f"{folder}/list")
        policy.save(DATA / f"{DATASET_LEVEL}.safetensors")
        steps = [[step.model_dump() for step in sub_policy] for sub_policy in policy.manifest.sub_policies]
        expected[DATASET_LEVEL] = {"digest": policy.digest, "sub_policies": steps, "lost": list(policy.manifest.lost)}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
