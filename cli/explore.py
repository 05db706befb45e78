"""`mapolicy explore`: try a policy on images of its data set, in the browser of this machine."""

from importlib.util import find_spec

from ..errors import EnvironmentFault
from . import display, options
from .report import data_config


def explore(
    bundle: options.BundleArgument,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Serve a page on this machine alone: pick an image, operations and magnitudes, see image, weight and rank.

    Ctrl-C ends it. Needs: pip install 'mapolicy[explore]'

    Example: mapolicy explore artifacts/c100.safetensors --data-dir data
    """
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise EnvironmentFault("explore", f"{package} is not installed", "pip install 'mapolicy[explore]'")
    opened = options.opened(bundle, expect_digest, limits)
    policy = options.searched(opened)

    from ..report.explore import Explorer, Site
    from ..report.sample_weights import SampleWeights
    from ..report.samples import open_splits
    from ..runtime.device import resolve_device

    display.note("reading the data set")
    where = resolve_device(device or "auto")
    splits = open_splits(policy, data_config(policy.manifest, data_dir), where)
    site = Site(Explorer(SampleWeights(policy, where), splits.train))
    if as_json:
        display.print_json({"address": site.address, "digest": policy.digest})
    else:
        print(f"open     {site.address}\nto end   Ctrl-C", flush=True)
    site.serve()
