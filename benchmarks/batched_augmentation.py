"""The batched RandAugment and TrivialAugmentWide against torchvision's, which take one image: throughput and pixels.

OMP_NUM_THREADS=1 python benchmarks/batched_augmentation.py --rounds 9 > augmentation.json
"""

import argparse
import json
import statistics
import time

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mapolicy.runtime.machine import versions
from mapolicy.transforms.auto_augment import RandAugment, TrivialAugmentWide
from mapolicy.transforms.space import Range

PAIRS = ((RandAugment, v2.RandAugment), (TrivialAugmentWide, v2.TrivialAugmentWide))


def noise(*shape: int) -> torch.Tensor:
    """Random images, the same in every run."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def throughput(batch: int, side: int, rounds: int) -> list[dict]:
    """Images per CPU second of each implementation, measured in turn."""
    images = noise(batch, 3, side, side)
    pictures = [F.to_pil_image(image) for image in images]
    rows = []
    for ours, theirs in PAIRS:
        batched, single = ours(), theirs()
        ways = {
            "batched": lambda batched=batched: batched(images),
            "torchvision, tensors": lambda single=single: torch.stack([single(image) for image in images]),
            "torchvision, PIL": lambda single=single: [single(picture) for picture in pictures],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, run in ways.items():
                start = time.process_time()
                run()
                if number:  # the first round warms up
                    seconds[way].append(time.process_time() - start)
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        for way, median in medians.items():
            rows.append(
                {
                    "what": f"{ours.__name__}, {batch} images of {side} x {side}",
                    "way": way,
                    "images_per_second": round(batch / median),
                    "ratio": round(median / medians["batched"], 2),
                    "n": rounds,
                }
            )
    return rows


def torchvisions_value(name: str, magnitude: float, spread: Range | None, side: int) -> float:
    """torchvision's magnitude for one of our levels."""
    if spread is None:
        return 0.0
    value = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(magnitude) / 10
    if name == "Posterize":
        return 8 - value
    if name == "Solarize":
        return value / 255
    if name.startswith("Translate"):  # torchvision's magnitude is the shift of the content, in whole pixels
        return round(value * side) * (1 if magnitude < 0 else -1)
    return -value if magnitude < 0 else value


def differences(ours: type, theirs: type, side: int = 32, copies: int = 8) -> list[dict]:
    """Share of pixels that differ from torchvision's, over all levels, directions and images, and the largest gap."""
    reference, images = theirs(), noise(copies, 3, side, side)
    modules = [ours(1, number) for number in range(31)] if ours is RandAugment else [ours()]
    gaps: dict[tuple[str, str], list[torch.Tensor]] = {}
    for module in modules:
        drawn = module.draw(noise(1, 1, 1).expand(20_000, 3, side, side), torch.Generator().manual_seed(0))
        choices = zip(drawn.names(), drawn.magnitudes.tolist(), strict=True)
        rows = {(name, magnitude): row for row, ((name,), (magnitude,)) in enumerate(choices)}
        for (name, magnitude), row in rows.items():
            value = torchvisions_value(name, magnitude, drawn.space.ranges[name], side)
            arguments = (name, value, v2.InterpolationMode.NEAREST, reference._fill)
            for image, result in zip(images, drawn[[row] * copies].apply(images), strict=True):
                tensor = reference._apply_image_or_video_transform(image, *arguments)
                picture = reference._apply_image_or_video_transform(F.to_pil_image(image), *arguments)
                for way, other in (("tensors", tensor), ("PIL", F.pil_to_tensor(picture))):
                    gaps.setdefault((name, way), []).append((result.int() - other.int()).abs())
    return [
        {
            "what": f"{ours.__name__}, {name}",
            "way": f"torchvision, {way}",
            "pixels": round(torch.stack(found).any(1).float().mean().item(), 5),
            "largest": int(torch.stack(found).max()),
            "n": len(found),
        }
        for (name, way), found in gaps.items()
    ]


def main() -> None:
    """Measure, and print one document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows = throughput(512, 32, rounds) + throughput(64, 224, rounds)
    different = [row for pair in PAIRS for row in differences(*pair)]
    print(json.dumps({"rows": rows, "differences": different, "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
