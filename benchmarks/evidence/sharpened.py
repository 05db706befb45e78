"""A bundle like another one, whose p_jk is raised to a power: what a bolder sampler of the same opinion is worth.

python benchmarks/evidence/sharpened.py BUNDLE OUT 8
mapolicy train --bundle OUT --policy sampler-only --arch ARCH
"""

import sys

from without import with_probabilities

from mapolicy import PolicyBundle


def main() -> None:
    """Write the bundle; its policy network is the other's."""
    source, out, power = sys.argv[1:]
    bundle = PolicyBundle.load(source)
    probabilities = bundle.probabilities.double()
    raised = (probabilities / probabilities.max()) ** float(power)
    with_probabilities(bundle, raised / raised.sum(), f"p_jk to the power of {power}.").save(out)


if __name__ == "__main__":
    main()
