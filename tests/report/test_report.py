"""What a report gathers, as numbers: against sums by hand, and against the bundle itself."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mapolicy import PolicyBundle
from mapolicy.bundle.load import open_bundle
from mapolicy.errors import InputError
from mapolicy.policy.compress import slim, synthetic_images
from mapolicy.report import figures, samples, tables
from mapolicy.report.changes import compare_bundles
from mapolicy.report.class_preferences import class_preferences
from mapolicy.report.gather import Report, gather
from mapolicy.report.magnitude_response import magnitude_response
from mapolicy.report.metrics import POINTS, read_run, thinned
from mapolicy.report.sample_weights import SampleWeights
from mapolicy.transforms.basic import Normalisation
from mapolicy.transforms.parse import parse_transformations
from mapolicy.transforms.space import DEFAULT_SPACE, OPERATION_NAMES, SPACES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(bundle: PolicyBundle, make_train_config):
    return samples.open_splits(bundle, make_train_config(**bundle.data_settings()), CPU)


@pytest.fixture(scope="module")
def gathered(bundle_file: Path, bundle: PolicyBundle, splits) -> Report:
    return gather(open_bundle(bundle_file), bundle, splits=splits, samples=140)


# Tables.


def test_probabilities_are_the_bundles(bundle: PolicyBundle, gathered: Report) -> None:
    table = gathered.probabilities
    assert table is not None
    assert np.array_equal(table.values, bundle.probabilities.double().numpy())
    position = divmod(int(table.values.argmax()), 14)
    assert float(table.texts[position[0]][position[1]]) == pytest.approx(100 * table.values.max(), abs=5e-4)
    detail = table.details[position[0]][position[1]]
    assert detail.startswith(f"{OPERATION_NAMES[position[0]]}, then {OPERATION_NAMES[position[1]]}: p = ")
    assert f"mean policy output {float(bundle.means[position]):.4f}" in detail
    assert abs(table.strength).max() == 1
    assert np.array_equal(np.sign(table.strength), np.sign(table.values - 1 / 196))
    assert table.totals is not None
    rows, columns = ([float(text) for text in texts] for texts in table.totals)
    assert rows == pytest.approx(100 * table.values.sum(1), abs=6e-3)
    assert columns == pytest.approx(100 * table.values.sum(0), abs=6e-3)


def test_a_uniform_policy_has_no_colour() -> None:
    table = tables.probability_table(np.full((14, 14), 1 / 196), np.full((14, 14), 0.5), OPERATION_NAMES)
    assert abs(table.strength).max() < 1e-6


def test_changes_are_relative() -> None:
    before = np.full((14, 14), 1 / 196)
    after = before.copy()
    after[1, 2], after[3, 4] = 1.5 / 196, 0
    table = tables.change_table(before, after, OPERATION_NAMES)
    assert table.values[1, 2] == pytest.approx(0.5)
    assert table.values[3, 4] == -1
    assert (table.texts[1][2], table.texts[3][4], table.texts[0][0]) == ("+50.0", "-100.0", "0.0")
    assert tables.change_table(after, before, OPERATION_NAMES).values[3, 4] > 1e6, "from nothing: no division by 0"


def test_what_may_be_chance_has_no_colour() -> None:
    ratios, errors = np.array([[1.1, 0.9]]), np.array([[0.04, 0.06]])
    table = tables.preference_table(["a"], ["x", "y"], ratios, errors, 5, 3)
    assert table.strength.tolist() == [[1.0, 0.0]]
    assert "1 of 3 classes, evenly spaced" in table.scale
    assert "evenly" not in tables.preference_table(["a"], ["x", "y"], ratios, errors, 5, 1).scale


def test_a_long_title_stays_in_the_picture() -> None:
    values = np.ones((2, 14))
    table = tables.preference_table(["a", "b"], OPERATION_NAMES, values, values, 4, 136)
    figure = figures.heat_figure(table)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.title.get_text() == "" != axes.get_title(loc="left")
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


# Runs.


def run_folder(
    folder: Path, lines: str, config: str = 'dataset = "folder:a/b/birds"\ndata_dir = "c"\nepochs = 2\n'
) -> Path:
    (folder / "config.toml").write_text(config)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_a_runs_log(tmp_path: Path) -> None:
    records = [{"epoch": n / 10, "loss": 1 / (n + 1), "alpha": math.nan} for n in range(20)]
    records.append({"epoch": 2, "validation_top1": 50.0})
    text = "".join(json.dumps(record) + "\n" for record in records)
    run = read_run(run_folder(tmp_path, text + '{"epoch": 3, "lo'))
    assert run.curves["loss"] == [(n / 10, 1 / (n + 1)) for n in range(20)]
    assert run.curves["validation_top1"] == [(2.0, 50.0)]
    assert "alpha" not in run.curves, "not a number"
    assert run.settings == {"dataset": "folder:birds", "epochs": 2}, "nothing of the machine's folders"
    assert run.digests == frozenset()
    (tmp_path / "result.json").write_text(json.dumps({"digest": "d", "bundle": "/x/y", "corrupt": ["/x/z"], "top": 1}))
    assert read_run(tmp_path).result == {"digest": "d", "top": 1}
    assert read_run(tmp_path).digests == {"d"}


@pytest.mark.parametrize("lines", ["[1]\n{}\n", '{"epoch": "a"}\n', '{"epoch": []}\n', "{]}\n", "[" * 9999 + "}\n"])
def test_no_log(tmp_path: Path, lines: str) -> None:
    with pytest.raises(InputError, match="has a log that mapolicy did not write"):
        read_run(run_folder(tmp_path, lines))
    with pytest.raises(InputError):
        read_run(tmp_path / "nowhere")


def test_a_long_curve_is_thinned_by_means() -> None:
    curve = [(float(n), float(n % 2)) for n in range(2 * POINTS)]
    found = thinned(curve)
    assert len(found) == POINTS
    assert found[0] == (0.5, 0.5)
    assert found[-1] == (2 * POINTS - 1.5, 0.5)
    assert thinned([]) == []
    assert thinned(curve[:3]) == curve[:3]


def test_a_run_of_another_bundle_is_refused(bundle_file: Path, bundle: PolicyBundle, tmp_path: Path) -> None:
    run_folder(tmp_path, '{"epoch": 1, "loss": 2}\n')
    (tmp_path / "result.json").write_text(json.dumps({"digest": "e" * 64}))
    with pytest.raises(InputError, match=f"of the bundle eeeeeeeeeeee, not of {bundle.digest[:12]}"):
        gather(open_bundle(bundle_file), bundle, read_run(tmp_path))


# Samples.


def test_samples_are_training_images_with_their_weights_and_losses(
    bundle: PolicyBundle, gathered: Report, splits
) -> None:
    found = gathered.samples
    assert found is not None
    assert found.losses is not None
    assert float(found.weights.mean()) == pytest.approx(1)
    everything = samples.load_images(splits.train, torch.arange(len(splits.train)))
    known = {image.numpy().tobytes(): int(label) for image, label in zip(*everything, strict=True)}
    for image, label in zip(found.originals, found.labels, strict=True):
        assert known[image.numpy().tobytes()] == int(label), "no training image of this class"
    sample_weights = SampleWeights(bundle, CPU)
    assert torch.equal(found.images, sample_weights.augmented(found.originals, found.transformation))
    contract = bundle.manifest.input
    network = bundle.build_extractor(CPU)
    logits = network(Normalisation(contract.mean, contract.std, CPU)(found.images))
    expected = -logits.double().log_softmax(1)[torch.arange(len(logits)), found.labels]
    torch.testing.assert_close(found.losses, expected, rtol=1e-4, atol=1e-5)

    order = sorted(range(len(found.weights)), key=lambda at: float(found.weights[at]))
    assert [float(found.weights[at]) for at in found.lightest(5)] == [float(found.weights[at]) for at in order[:5]]
    assert [float(found.weights[at]) for at in found.heaviest(5)] == [float(found.weights[at]) for at in order[:-6:-1]]
    hard, easy = found.against_the_loss(8)
    assert found.losses[hard].mean() > found.losses.mean() > found.losses[easy].mean()
    assert found.weights[hard].mean() < 1 < found.weights[easy].mean()
    assert not set(hard) & set(easy)


def test_without_classifier_there_are_no_losses(bundle: PolicyBundle, splits) -> None:
    smaller, _ = slim(bundle)
    found = samples.draw_samples(SampleWeights(smaller, CPU), splits.train, 4)
    assert found.losses is None
    assert found.against_the_loss() == ([], [])
    assert len(found.heaviest()) == 4


def test_response_is_the_weight_over_that_of_the_image_as_it_is(bundle: PolicyBundle) -> None:
    sample_weights, images = SampleWeights(bundle, CPU), synthetic_images(bundle.manifest.input)[:3]
    found = magnitude_response(sample_weights, images, real=False)
    operation, column = OPERATION_NAMES.index("Rotate"), 3
    policy = bundle.build_policy()
    ratios = []
    for image, sign in zip(images, (-1, 1, -1), strict=True):
        raw = []
        for text in (f"Rotate:{sign * found.levels[column]}", "Identity"):
            transformation = parse_transformations(text)
            changed = sample_weights.augmented(image[None], transformation)
            raw.append(policy(sample_weights.extractor(changed), transformation.embed()).item())
        ratios.append(raw[0] / raw[1])
    for values, share in ((found.low, 0.25), (found.median, 0.5), (found.high, 0.75)):
        assert values[operation, column] == pytest.approx(np.quantile(ratios, share), rel=1e-4)
    assert found.median[OPERATION_NAMES.index("Identity")] == pytest.approx(1)
    for row, moves in enumerate(SPACES[DEFAULT_SPACE].has_magnitude):
        assert moves or len(set(found.median[row])) == 1
    assert found.images == 3


def test_classes_prefer_what_they_weigh_more(bundle: PolicyBundle, splits) -> None:
    """A policy that looks at the image alone has no preferences; a planted one is found."""
    found = class_preferences(SampleWeights(bundle, CPU), splits.train, 280)
    assert found is not None
    assert list(found.labels) == list(range(10))
    assert found.images == 4
    assert found.ratios.shape == found.errors.shape == (10, 14)

    class Planted(SampleWeights):
        def logits(self, augmented, transformation):
            dark = augmented.double().mean((1, 2, 3)) < 100  # the class that black images stand for
            likes = dark & (transformation.first == 2)
            return torch.where(likes, 0.0, -1.0).double()

    class TwoClasses:
        labels = torch.tensor([0, 1] * 4)

        def __len__(self) -> int:
            return 8

        def batches(self, schedule):
            ((_, positions),) = schedule
            yield (self.labels[positions] * 255)[:, None, None, None].expand(-1, 1, 8, 8).byte(), self.labels[positions]

    planted = class_preferences(Planted(bundle, CPU), TwoClasses(), 1)  # type: ignore[arg-type]
    assert planted is not None
    like, other = F.logsigmoid(torch.tensor([0.0, -1.0])).exp().tolist()
    share = like / (like + 13 * other)
    assert planted.ratios[0, 2] == pytest.approx(share / ((share + 1 / 14) / 2))
    assert planted.errors == pytest.approx(0, abs=1e-9)


def test_no_preferences_of_single_images(bundle: PolicyBundle, splits) -> None:
    class Single:
        labels = torch.arange(10)

        def __len__(self) -> int:
            return 10

    assert class_preferences(SampleWeights(bundle, CPU), Single(), 100) is None  # type: ignore[arg-type]


# Changes.


def test_a_bundle_against_its_slim_copy(bundle: PolicyBundle) -> None:
    smaller, effect = slim(bundle)
    found = compare_bundles(bundle, smaller)
    assert (found.before, found.after) == (bundle.digest, smaller.digest)
    assert ("extractor stored in", "float32", "float16") in found.facts
    assert len(found.facts) == 1, "nothing else differs"
    assert not found.table.values.any()
    assert found.effect == effect
    assert not found.real


# Kinds of report.


def test_a_dataset_level_policy_and_a_run_alone(tmp_path: Path) -> None:
    from mapolicy.policy.import_policy import import_policy

    import_policy("randaugment:2,9").save(tmp_path / "r.safetensors")
    found = gather(open_bundle(tmp_path / "r.safetensors"), None)
    assert found.dataset_level is not None
    assert found.digest == found.dataset_level.digest
    run = read_run(run_folder(tmp_path, '{"epoch": 1, "loss": 2}\n'))
    assert gather(None, None, run).subject == "folder:birds"


# Pictures.


def test_a_chart_on_a_page_takes_the_pages_colours() -> None:
    draws = list(figures.curve_draws({"loss": [(0.0, 1.0), (1.0, 0.5)], "validation_loss": [(1.0, 2.0)]}).values())
    assert len(draws) == 1
    first, second = figures.panels("a", draws)[0], figures.panels("b", draws)[0]
    assert not any(colour in first for colour in (figures.INK, figures.PALE, figures.FIRST, figures.SECOND))
    assert "var(--series-1)" in first
    assert "var(--series-2)" in first
    assert "<style" not in first
    ids = [set(figures.re.findall(r' id="([^"]*)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1], "two charts of a page have no address in common"
    for text in (first, second):
        pointed = set(figures.re.findall(r"(?:xlink:href=\"|url\()#([^\")]*)", text))
        assert pointed <= set(figures.re.findall(r' id="([^"]*)"', text))
    assert figures.panels("a", draws)[0] == first, "the same bytes again"


@pytest.mark.parametrize("name", ["$\\frac", "<b>&\"'", "日本語", "a" * 999, "x\u202ey"])
def test_foreign_names_are_plain_text(name: str, recwarn: pytest.WarningsRecorder) -> None:
    values = np.ones((2, 14))
    table = tables.preference_table([name, "b"], OPERATION_NAMES, values, values, 2, 2)
    found = figures.rendered(figures.heat_figure(table))
    assert found["png"].startswith(b"\x89PNG")
    assert b"\xe2\x80\xae" not in found["svg"]
    tiles = figures.tile_figure([("", [(np.zeros((1, 4, 4), np.uint8), f"{name}\nweight")])])
    assert figures.rendered(tiles)["png"].startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_heat_map_is_red_above_and_blue_below(tmp_path: Path) -> None:
    values = np.full((14, 14), 1 / 196)
    values[0, 0], values[13, 13] = 2 / 196, 0.1 / 196
    table = tables.probability_table(values, values, OPERATION_NAMES)
    (tmp_path / "p.png").write_bytes(figures.rendered(figures.heat_figure(table))["png"])
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    red = np.argwhere(pixels[..., 0] > pixels[..., 2] + 50).mean(0)
    blue = np.argwhere(pixels[..., 2] > pixels[..., 0] + 50).mean(0)
    assert red[0] < blue[0]
    assert red[1] < blue[1]


def test_a_long_row_of_tiles_goes_on_below() -> None:
    tile = (np.zeros((3, 4, 4), np.uint8), "x")
    figure = figures.tile_figure([("a", [tile] * (figures.TILES_IN_A_ROW + 1)), ("b", [tile])])
    filled = [bool(axes.images) for axes in figure.axes]
    assert len(filled) == 3 * figures.TILES_IN_A_ROW
    assert sum(filled) == figures.TILES_IN_A_ROW + 2
    assert filled[figures.TILES_IN_A_ROW]
    assert filled[2 * figures.TILES_IN_A_ROW]
