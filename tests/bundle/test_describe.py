"""A bundle's facts as plain values."""

import json
import math

import numpy as np

from mapolicy.bundle.describe import describe
from mapolicy.bundle.format import parse_bundle
from tests.helpers.bundle_factory import forge, raw


def test_facts() -> None:
    values = np.ones((14, 14))
    values[2, 5], values[0, 1] = 3, 0
    values /= values.sum()
    content = forge(sampler__probabilities=raw(values))
    found = describe(*parse_bundle(content, "x"), len(content))
    assert json.loads(json.dumps(found))["digest"] == found["digest"]
    entropy = -sum(p * math.log(p) for p in values.flatten() if p)
    assert math.isclose(found["entropy"], entropy / math.log(196), rel_tol=1e-6)
    assert math.isclose(found["furthest"], 3 / (197 / 196) - 1, rel_tol=1e-5)
    first = found["likeliest"][0]
    assert (first["first"], first["second"]) == ("Rotate", "Color")
    last = found["unlikeliest"][0]
    assert (last["first"], last["second"], last["probability"]) == ("AutoContrast", "Equalize", 0)
    assert found["parameters"] == {"extractor": 72, "policy": 100 * 8 + 100 + 100 * 28 + 100 + 200 + 1}
    assert found["bytes"] == len(content)
