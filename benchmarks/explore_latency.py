"""Response time of the page of `mapolicy explore`, with WRN-40-2 as the extractor, over HTTP on loopback.

pip install -e '.[explore]'
python benchmarks/explore_latency.py --threads 2

The bundle comes from two iterations on noise, since the response time does not depend on what was learned. A request
names an image and a transformation; the response holds both pictures, weight and rank.
"""

import argparse
import statistics
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

import torch
from PIL import Image

from mapolicy import SearchConfig, recipes, search_policy
from mapolicy.bench.synthetic import synthetic_images
from mapolicy.config import TrainConfig
from mapolicy.report.explore_server import Site
from mapolicy.report.explorer import Explorer
from mapolicy.report.sample_weights import SampleWeights
from mapolicy.report.samples import open_splits

PER_CLASS = 150


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--proxy", default="wrn40_2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(synthetic_images(2 * PER_CLASS, 32)):
            place = Path(folder) / "noise" / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
        measure(Path(folder), options.proxy, options.threads, options.questions)


def measure(folder: Path, proxy: str, threads: int, questions: int) -> None:
    """Search, start the server, send requests."""
    _, settings = recipes.find("search", "folder:noise", proxy)
    small = {"dataset": "folder:noise", "data_dir": str(folder), "proxy": proxy, "image_size": 32, "epochs": 1}
    sizes = {"batch_size": 100, "validation_batch_size": 8, "validation_per_class": 10, "test_per_class": 10}
    bundle = search_policy(SearchConfig.from_mapping(settings | small | sizes | {"compile": "never"}))
    _, settings = recipes.find("train", "folder:noise", "resnet18")
    known = bundle.data_settings() | {"data_dir": str(folder), "arch": "resnet18"}
    cpu = torch.device("cpu")
    splits = open_splits(bundle, TrainConfig.from_mapping(settings | known), cpu)

    torch.set_num_threads(threads)
    started = time.perf_counter()
    site = Site(Explorer(SampleWeights(bundle, cpu), splits.train))
    ready = time.perf_counter() - started
    thread = threading.Thread(target=site.serve)
    thread.start()
    parts = urlsplit(site.address)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0)
    found = []
    for question in range(questions):
        text = quote(f"Rotate:{question % 20 - 10},Solarize:{question % 11}")
        before = time.perf_counter()
        connection.request("GET", f"{parts.path}weigh?image={question % 200}&transformation={text}")
        answer = connection.getresponse()
        content = answer.read()
        found.append(1000 * (time.perf_counter() - before))
        assert answer.status == 200
    site.stop()
    thread.join()
    found.sort()
    median, late = statistics.median(found), found[int(0.95 * questions)]
    print(f"{proxy}, {threads} threads, {questions} questions; batch and page ready in {ready:.1f} s")
    print(f"median {median:.0f} ms, 95 % {late:.0f} ms, worst {found[-1]:.0f} ms; {len(content)} bytes each")


if __name__ == "__main__":
    main()
