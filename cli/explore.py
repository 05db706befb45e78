"""`mapolicy explore`: try a policy on images of its data set, in the browser of this machine."""

from importlib.util import find_spec

from ..errors import EnvironmentFault
from . import bundles, display, options
from .grouped import grouped
from .report import data_config


@grouped
def explore(
    *,
    bundle: options.BundleArgument,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    checks: options.BundleChecks,
    output: options.Output,
) -> None:
    """Try a policy on images of its data set, in the browser.

    Choose an image, operations and magnitudes; the page shows the image, its weight and its rank. Only this machine
    can open the page. Ctrl-C stops the command. Needs: pip install 'mapolicy[explore]'

    Example: mapolicy explore artifacts/c100.safetensors --data-dir data
    """
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise EnvironmentFault("explore", f"{package} is not installed", "pip install 'mapolicy[explore]'")
    policy = bundles.build_searched(checks.open(bundle))

    from ..report.explore_server import Site
    from ..report.explorer import Explorer
    from ..report.sample_weights import SampleWeights
    from ..report.samples import open_splits
    from ..runtime.device import resolve_device

    display.note("reading the data set")
    where = resolve_device(device or "auto")
    splits = open_splits(policy, data_config(policy.manifest, data_dir), where)
    site = Site(Explorer(SampleWeights(policy, where), splits.train))
    if output.as_json:
        display.print_json({"address": site.address, "digest": policy.digest})
    else:
        print(f"open     {site.address}\nto end   Ctrl-C", flush=True)
    site.serve()
