"""The commands, with arguments as typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import deformdetr.engine
from commands import refused, shown
from deformdetr.cli import main
from deformdetr.config import PRESETS, preset, with_backbone_weights
from deformdetr.data import write_shapes
from deformdetr.engine import load_run, read_experiment
from deformdetr.engine._best import BestScore
from experiments import SETTINGS, tiny_experiment, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("cli") / "run", epochs=1)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def launched(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300)


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_steps_from_a_dataset_to_detections(capsys):
    text = helped(capsys)
    commands = ("config", "check", "train", "eval", "predict")
    assert [text.index(f"deformdetr {name}") for name in commands] == sorted(
        text.index(f"deformdetr {name}") for name in commands
    )


def test_no_command_shows_the_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "deformdetr demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "eval",
        "predict",
        "check",
        "coco",
        "split",
        "shards",
        "convert",
        "export",
        "presets",
        "config",
        "summary",
        "schema",
        "demo",
    ],
)
def test_help_of_each_command_fits_a_screen_and_explains_every_option(capsys, command):
    text = helped(capsys, command)
    assert len(text.splitlines()) <= 30
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)(?: \w+)?(.*(?:\n   .*)?)", text, flags=re.MULTILINE)
    assert all(explained.strip() for _, explained in options)


def test_version_is_printed(capsys):
    assert shown(capsys, "--version").strip() == deformdetr.__version__


def test_presets_are_listed_with_their_properties(capsys):
    lines = shown(capsys, "presets").splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert "box refinement, two-stage" in dict(zip(PRESETS, lines, strict=True))["deformable_detr_r50_two_stage"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_printed_config_equals_its_preset(capsys, tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(shown(capsys, "config", name))
    experiment = read_experiment(path)
    assert experiment.model == with_backbone_weights(preset(name), "DEFAULT").replace(num_classes=91)
    assert getattr(experiment.model.backbone, "weights", "DEFAULT") == "DEFAULT"
    assert "num_classes" not in experiment.model.model_fields_set
    assert experiment.train == deformdetr.engine.recipe(preset(name))


def test_summary_describes_the_model_of_a_preset_and_of_a_config(capsys, config):
    text = shown(capsys, "summary", "demo", "--size", "96x128")
    assert "one image of 96 x 128 pixels" in text
    assert re.search(r"^total +491,213 +491,213 +\d+\.\d\d$", text, flags=re.MULTILINE)
    text = shown(capsys, "summary", config, "--size", "64 x 64")
    assert "1 × 10 × 16" in text
    assert "this summary is for" in text
    message = refused(capsys, "summary", "demo", "--size", "800")
    assert "--size: Value error, must be height x width in pixels, such as 800x1200, got '800'" in message
    assert "no_preset" in refused(capsys, "summary", "no_preset")


@pytest.mark.parametrize("command", ["train", "eval", "predict", "coco", "split", "shards", "demo"])
def test_what_is_written_has_one_name_in_all_commands(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--output Path, --out Path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("predict", "nothing", "photo.png", "--output", "{}", "--font", "gone.ttf"),
            "gone.ttf cannot be read as a font",
        ),
        (("check", "nothing.yaml", "--draw", "{}/sheet.txt"), "no image format has the suffix '.txt'"),
        (("check", "nothing.yaml", "--draw", "{}/gone/sheet.png"), "there is no folder"),
        (("split", "nothing.json", "--output", "{}/file.txt"), "is a file, and a folder is needed"),
        (("split", "nothing.json", "--output", "{}"), "train.json exists already"),
        (("coco", "nothing", "--output", "{}/file.txt"), "is a file, and a folder is needed"),
    ],
)
def test_files_that_are_named_are_checked_before_anything_else(arguments, message, capsys, tmp_path):
    for name in ("file.txt", "train.json"):
        (tmp_path / name).touch()
    assert message in refused(capsys, *(each.format(tmp_path) for each in arguments))


def test_prediction_says_what_scores_below_the_threshold(capsys, tmp_path, run):
    Image.effect_noise((70, 50), 90).save(tmp_path / "photo.png")
    text = shown(capsys, "predict", run, tmp_path / "*.png", "--output", tmp_path / "out", "--threshold", "1")
    assert "no detection scores 1 or more in the image; the best score is 0." in text


def test_schema_is_json(capsys):
    assert json.loads(shown(capsys, "schema"))["title"] == "Experiment"


def test_training_writes_a_run_that_can_be_evaluated(capsys, tmp_path, config):
    out = tmp_path / "run"
    text = shown(capsys, "train", config, "--output", out, "--train.epochs", "1")
    assert "epoch 1/1" in text
    assert f"{out}: best.pt, last.pt, metrics.jsonl, curves.png; next: deformdetr eval {out}\n" in text
    text = shown(capsys, "eval", out)
    assert "Average Precision  (AP) @[ IoU=0.50      | area=   all" in text
    assert json.loads((out / "evaluation.json").read_text())["AP"] is not None


def test_only_files_that_exist_are_announced(capsys, tmp_path, config, monkeypatch):
    # As if the evaluation images had no objects.
    monkeypatch.setattr(BestScore, "update", lambda self, metrics: False)
    out = tmp_path / "run"
    text = shown(capsys, "train", config, "--output", out, "--train.epochs", "1")
    assert f"{out}: last.pt, metrics.jsonl, curves.png; next: deformdetr eval {out}\n" in text
    assert not (out / "best.pt").exists()


def test_settings_that_are_off_are_turned_on_on_the_command_line(capsys, tmp_path, config):
    changes = {"--train.ema.decay": "0.9", "--train.early_stopping.patience": "3", "--data.augment.color.hue": "0.1"}
    arguments = [each for pair in changes.items() for each in pair]
    shown(capsys, "train", config, "--output", tmp_path / "run", "--train.epochs", "1", *arguments)
    experiment = load_run(tmp_path / "run")[1].experiment
    assert experiment.train.ema.decay == 0.9
    assert experiment.train.early_stopping.patience == 3
    assert experiment.data.augment.color.hue == 0.1


def test_settings_on_the_command_line_take_precedence(capsys, tmp_path, config):
    changes = {
        "--train.epochs": "1",
        "--train.lr": "3e-4",
        "--train.schedule.kind": "cosine",
        "--train.max_grad_norm": "null",
        "--model.num_queries": "6",
        "--model.two_stage": "false",
        "--model.backbone.channels": "8,8,8,8",
        "--data.num_val": "2",
        "--data.augment.flip": "0",
    }
    arguments = [each for pair in changes.items() for each in pair]
    shown(capsys, "train", config, "--output", tmp_path / "run", *arguments)
    experiment = load_run(tmp_path / "run")[1].experiment
    assert (experiment.train.epochs, experiment.train.lr, experiment.train.max_grad_norm) == (1, 3e-4, None)
    assert experiment.train.schedule.kind == "cosine"
    assert (experiment.model.num_queries, experiment.model.two_stage) == (6, False)
    assert experiment.model.backbone.channels == (8, 8, 8, 8)
    assert (experiment.data.num_val, experiment.data.augment.flip, experiment.data.num_train) == (2, 0, 12)


def test_preset_on_the_command_line_provides_missing_settings(capsys, tmp_path, config):
    config.write_text(yaml.safe_dump({name: SETTINGS[name] for name in ("data", "train")}))
    message = refused(capsys, "train", config, "--output", tmp_path / "run", "--model.preset", "demmo")
    assert "no preset 'demmo'" in message
    assert not (tmp_path / "run").exists()


def test_training_resumes_only_when_asked(capsys, tmp_path, config):
    out = tmp_path / "run"
    shown(capsys, "train", config, "--output", out, "--train.epochs", "1")
    assert "is not overwritten" in refused(capsys, "train", config, "--output", out)
    assert "resuming after epoch 1" in shown(capsys, "train", config, "--output", out, "--resume")
    assert load_run(out, prefer=["last.pt"])[1].epoch == 2


def test_interruption_has_one_line_and_its_own_status(capsys, tmp_path, config, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("deformdetr.cli._commands.train", interrupt)
    assert main(["train", str(config), "--output", str(tmp_path / "run")]) == 130
    assert "--resume" in capsys.readouterr().err


def test_unknown_option_is_named_with_a_suggestion(capsys, config):
    message = refused(capsys, "train", config, "--train.lrr", "1e-4", "--lr", "1", "--model.num_query=3")
    assert "no option --train.lrr; did you mean train.lr?" in message
    assert "no option --lr; did you mean train.lr?" in message
    assert "no option --model.num_query; did you mean model.num_queries?" in message


def test_unknown_command_is_refused_with_the_known_ones(capsys):
    message = refused(capsys, "trian")
    assert "'trian'" in message
    assert "'train'" in message


def test_missing_argument_is_named(capsys):
    assert "CONFIG" in refused(capsys, "train")
    assert "IMAGES" in refused(capsys, "predict", "run", "--output", "x")
    assert "--output" in refused(capsys, "predict", "run", "image.png")


def test_invalid_value_is_named_with_its_option(capsys, config):
    assert "train.lr: Input should be a valid number" in refused(capsys, "train", config, "--train.lr", "fast")
    message = refused(capsys, "predict", "run", "image.png", "--output", "x", "--threshold", "7")
    assert "--threshold: Input should be less than or equal to 1" in message


def test_wrong_settings_of_a_file_are_one_message(capsys, config):
    config.write_text(yaml.safe_dump(SETTINGS | {"train": {"epoch": 3}}))
    message = refused(capsys, "train", config)
    assert str(config) in message
    assert "no setting 'train.epoch'; did you mean train.epochs?" in message


def test_debug_shows_the_traceback(capsys):
    for arguments in (["--debug", "check", "none.yaml"], ["check", "none.yaml", "--debug"]):
        assert main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_bugs_are_not_hidden(config, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("deformdetr.cli._commands.train", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["train", str(config)])


def test_missing_extra_is_named_with_how_to_install_it(capsys, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert 'pip install "deformdetr[train]"' in refused(capsys, "check", config)


def coco_config(tmp_path, folder):
    files = write_shapes(tiny_experiment().data, folder)
    path = tmp_path / "coco.yaml"
    data = files.model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump({"model": SETTINGS["model"], "data": data, "train": SETTINGS["train"]}))
    return path


def test_check_describes_the_dataset_and_names_a_broken_image(capsys, tmp_path):
    folder = tmp_path / "shapes"
    path = coco_config(tmp_path, folder)
    assert "12 images" in shown(capsys, "check", path)
    assert "17 image files decoded" in shown(capsys, "check", path, "--decode")
    broken = folder / "val" / "000002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    shown(capsys, "check", path)
    assert str(broken) in refused(capsys, "check", path, "--decode")


def test_check_draws_augmented_images(capsys, tmp_path):
    path, picture = coco_config(tmp_path, tmp_path / "shapes"), tmp_path / "sheet.png"
    text = shown(capsys, "check", path, "--draw", picture)
    assert text.endswith(f"augmented training images: {picture}\n")
    with Image.open(picture) as sheet:
        assert sheet.size == (1640, 1232)
    assert "no image format has the suffix '.txt'" in refused(capsys, "check", path, "--draw", tmp_path / "sheet.txt")


def test_dataset_that_cannot_be_trained_on_is_refused_before_anything_is_written(capsys, tmp_path):
    folder = tmp_path / "shapes"
    path = coco_config(tmp_path, folder)
    (folder / "train" / "000003.png").unlink()
    assert "000003.png" in refused(capsys, "train", path, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_is_evaluated_on_other_images(capsys, tmp_path, run):
    folder = tmp_path / "shapes"
    coco_config(tmp_path, folder)
    result = tmp_path / "result.json"
    data = {"kind": "coco"} | {
        name: folder / value
        for name, value in {
            "train_images": "train",
            "train_annotations": "train.json",
            "val_images": "val",
            "val_annotations": "val.json",
        }.items()
    }
    options = [each for name, value in data.items() for each in (f"--data.{name}", value)]
    shown(capsys, "eval", run, "--output", result, "--batch_size", "2", *options)
    assert json.loads(result.read_text())["images"] == 5


def test_prediction_accepts_options_between_images_and_reports_skipped_files(capsys, tmp_path, run):
    Image.effect_noise((70, 50), 90).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"")
    out = tmp_path / "out"
    good = ["predict", str(run), str(tmp_path / "photo.png")]
    assert main([*good, "--output", str(out), "--threshold", "0.1"]) == 0
    assert "1 pictures" in capsys.readouterr().out
    assert main(["predict", "--output", str(out), *good[1:], str(tmp_path / "broken.png")]) == 1
    assert "broken.png" in capsys.readouterr().out
    assert (out / "photo.png").exists()


def test_demonstration_prints_table_and_pictures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("deformdetr.engine._demo.demo_experiment", lambda: tiny_experiment(epochs=1))
    text = shown(capsys, "demo", "--output", tmp_path / "demo")
    assert "Average Precision" in text
    for name in ("detections.png", "sampling_points.png"):
        assert str(tmp_path / "demo" / name) in text
        assert (tmp_path / "demo" / name).exists()


def test_package_runs_as_a_module():
    process = launched("-m", "deformdetr", "--version")
    assert (process.returncode, process.stdout.strip()) == (0, deformdetr.__version__)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_together(tmp_path, config):
    config_of_accelerate = Path(__file__).parents[1] / "configs" / "accelerate.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config_of_accelerate), "-m", "deformdetr"]
    # Five validation images: the processes' shares differ, and each image must count once.
    command = ["train", str(config), "--output", str(tmp_path / "two")]
    command += ["--train.batch_size", "1", "--train.accumulate_steps", "2"]
    process = launched(*launch, *command)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("epoch 2/2  step 6") == 1
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    _, checkpoint = load_run(tmp_path / "two", prefer=["last.pt"])
    alone = tmp_path / "alone.json"
    found = deformdetr.engine.evaluate_run(tmp_path / "two" / "last.pt", output=alone)
    assert found.metrics == checkpoint.metrics

    # A single process with all four images of each step in one batch.
    one = tiny_run(tmp_path / "one")
    for name, weights in load_run(one, prefer=["last.pt"])[1].model.items():
        assert (weights - checkpoint.model[name]).abs().max() < 1e-3, name

    process = launched(*launch, "eval", str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("IoU=0.50      | area=   all") == 1


def test_messages_show_control_characters_instead_of_sending_them(capsys, tmp_path):
    message = refused(capsys, "eval", tmp_path / "\x1b[31mrun")
    assert "\\x1b[31mrun" in message
    assert message.removesuffix("\n").isprintable()
    assert " ... " in refused(capsys, "train", tmp_path / "a.yaml", "--" + 9000 * "b", 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_is_one_line(capsys, tmp_path, config, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("deformdetr.cli._commands.train", fail)
    message = refused(capsys, "train", config, "--output", tmp_path / "run")
    assert "there is not enough memory; smaller batches or images need less" in message
    assert message.strip().count("\n") == 0
