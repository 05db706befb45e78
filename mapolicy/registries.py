"""What code outside the package can add, and the names of what is there: policies, data sets, samplers, losses.

    @register_policy("invert", "inverts every image")
    class Invert:
        def __init__(self, config, dataset): ...
        def __call__(self, images, fill, generator, shard=None):  # uint8 [B, C, H, W], the same for every step
            return 255 - images, None

    @register_dataset("blobs", "two clouds of dots")
    def open_blobs(request):                            # mapolicy.data.image_dataset.DatasetRequest
        return Source("blobs", "blobs", ("left", "right"), ArrayImages(arrays, labels), None)

    @register_loss("focal", "the focal loss of Lin et al. (2017)")
    def focal(logits, labels):                          # float [n, classes], int64 [n]
        losses = cross_entropy(logits, labels)
        return (1 - torch.exp(-losses)) ** 2 * losses   # float [n]

    @register_sampler("identity", "draws nothing but Identity")
    def identity(plan):                                 # mapolicy.policy.samplers.SamplerPlan
        return IdentitySampler()                        # a mapolicy.policy.sampler.Sampler

Operations and operation spaces are added in `mapolicy.transforms.space`. A module that adds something becomes part of
the command line as a plugin (`mapolicy.runtime.plugins`). The tables hold names and descriptions; what they name is
imported at its first use, so that `mapolicy --help` imports no torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .runtime.registry import NAME, Registry

# What a policy file brings: the policy, and its halves.
SEARCHED_POLICIES: Mapping[str, str] = {
    "learned": "a bundle's policy",
    "sampler-only": "its p_jk with equal weights",
    "weights-only": "its weights for uniformly drawn transformations",
}

_POLICIES, _DATASETS = "mapolicy.policy.augmentations", "mapolicy.data.dataset_factory"
_SAMPLERS = "mapolicy.policy.samplers"

# Called with the run's configuration and the data set's name; return an `Augmentation` (`mapolicy.policy`).
ZERO_COST_POLICIES: Registry[Callable[..., Any]] = Registry(
    "policy",
    built_in=(
        ("none", "the base augmentation alone", f"{_POLICIES}:build_none"),
        ("uniform", "transformations drawn uniformly from the operation space", f"{_POLICIES}:build_uniform"),
        ("trivialaugment", "TrivialAugment (wide) with torchvision's defaults", f"{_POLICIES}:build_trivialaugment"),
        ("randaugment", "RandAugment with torchvision's defaults", f"{_POLICIES}:build_randaugment"),
        ("autoaugment", "AutoAugment's policy of CIFAR-10 or ImageNet", f"{_POLICIES}:build_autoaugment"),
    ),
    reserved=(*SEARCHED_POLICIES, "proxy"),  # `proxy` names a row of a comparison
)

# Called with a `DatasetRequest`; return a `Source` (both in `mapolicy.data.image_dataset`). A name that ends in :PATH
# or /NAME stands for every name that begins as it does.
DATASETS: Registry[Callable[..., Any]] = Registry(
    "data set",
    built_in=(
        ("digits", "1,797 grey 8x8 digits of 10 classes; come with scikit-learn", f"{_DATASETS}:open_digits"),
        ("cifar10", "60,000 colour 32x32 images of 10 classes; downloaded", f"{_DATASETS}:open_cifar"),
        ("cifar100", "60,000 colour 32x32 images of 100 classes; downloaded", f"{_DATASETS}:open_cifar"),
        ("omniglot", "32,460 105x105 drawings of 1,623 characters; downloaded", f"{_DATASETS}:open_omniglot"),
        (
            "imagenet",
            "ImageNet's class folders in DATA_DIR/imagenet/train and val; never downloaded",
            f"{_DATASETS}:open_imagenet",
        ),
        (
            "folder:PATH",
            "a folder with a folder of images for each class, or with train and test (or val) of such",
            f"{_DATASETS}:open_folder",
        ),
        ("torch/NAME", "a data set of torchvision, through timm.data.create_dataset", f"{_DATASETS}:open_with_timm"),
        ("hfds/NAME", "a data set of the Hugging Face Hub, through timm", f"{_DATASETS}:open_with_timm"),
        ("hfids/NAME", "the same, streamed", f"{_DATASETS}:open_with_timm"),
        ("tfds/NAME", "a data set of TensorFlow Datasets, through timm", f"{_DATASETS}:open_with_timm"),
        ("wds/NAME", "a web data set, through timm", f"{_DATASETS}:open_with_timm"),
    ),
    pattern=rf"{NAME}(:PATH|/NAME)?",
)

# Called with a `SamplerPlan` (`mapolicy.policy.samplers`); return a `Sampler` (`mapolicy.policy.sampler`).
SAMPLERS: Registry[Callable[..., Any]] = Registry(
    "sampler",
    built_in=(
        ("mean-weight", "p_jk follows the policy network's mean outputs (Eq. 5)", f"{_SAMPLERS}:mean_weight"),
        ("alignment", "operations and levels that harm held-out images are drawn less often", f"{_SAMPLERS}:alignment"),
        (
            "adversarial",
            "operations and levels with a large training loss are drawn more often",
            f"{_SAMPLERS}:adversarial",
        ),
    ),
)

# Called with logits float [n, classes] and labels int64 [n]; return one loss for each sample, float [n].
LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    built_in=(("cross-entropy", "the cross entropy", "mapolicy.bilevel.sample_loss:cross_entropy"),),
)

register_policy = ZERO_COST_POLICIES.register
register_dataset = DATASETS.register
register_sampler = SAMPLERS.register
register_loss = LOSSES.register


def policy_names() -> tuple[str, ...]:
    """Every name that `--policy` takes."""
    return (*SEARCHED_POLICIES, *ZERO_COST_POLICIES)


def dataset_entry(name: str) -> str | None:
    """The entry of `DATASETS` that serves a data set's name; None where there is none.

    The entry of a family (`torch/NAME`) is found by the name's beginning, in any case of letters for `/NAME`.
    """
    kind, colon, _ = name.partition(":")
    prefix, slash, _ = name.partition("/")
    if colon and f"{kind}:PATH" in DATASETS:
        return f"{kind}:PATH"
    if slash and f"{prefix.lower()}/NAME" in DATASETS:
        return f"{prefix.lower()}/NAME"
    return name if name in DATASETS else None
