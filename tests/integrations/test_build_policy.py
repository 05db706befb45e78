"""A bundle is given as an object or as a file, and nothing foreign is imported before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mapolicy.errors import InputError
from mapolicy.integrations.build_policy import build_policy, normalised


def test_a_bundle_and_its_file_are_the_same_policy(bundle, bundle_file: Path, batches) -> None:
    for given in (bundle, bundle_file, str(bundle_file)):
        inputs, targets = build_policy(given, seed=3)(*batches[0])
        expected = build_policy(bundle, seed=3)(*batches[0])
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])
    with pytest.raises(InputError, match="nothing"):
        build_policy("nothing.safetensors")


def test_float_images_were_normalised_before(bundle, batches) -> None:
    policy, images = build_policy(bundle), batches[0][0]
    assert torch.equal(normalised(policy, images), policy.normalise(images))
    assert normalised(policy, images.float()).equal(images.float())


HIDDEN = """
import sys
sys.modules.update({"lightning": None, "lightning.pytorch": None, "transformers": None, "accelerate": None})
import mapolicy, mapolicy.integrations.accelerate, mapolicy.integrations.timm
assert "timm" not in mapolicy.__dict__
for name in ("lightning", "transformers"):
    try:
        __import__(f"mapolicy.integrations.{name}")
    except ImportError as problem:
        print(problem)
"""


def test_without_the_packages() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [
        f"mapolicy.integrations.{name} needs {name}; pip install 'mapolicy[integrations]'"
        for name in ("lightning", "transformers")
    ]
