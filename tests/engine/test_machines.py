"""Training on two machines, which are network namespaces joined by a cable."""

import pytest

from deformdetr.config import save_config
from deformdetr.data import SeededSampler, ShapesConfig, build_dataset
from deformdetr.engine import RunDirectory, evaluate_run, load_run, train
from experiments import tiny_experiment
from machines import start_training, two_machines


@pytest.fixture
def machines():
    try:
        with two_machines() as made:
            yield made
    except PermissionError as error:
        pytest.skip(str(error))


def empty_batches_of_one_process(experiment):
    """Return how often one process has no target in a step, and the other has."""
    dataset = build_dataset(experiment.data, "train")
    count = 0
    for epoch in range(experiment.train.epochs):
        sampler = SeededSampler(len(dataset), shuffle=True, seed=experiment.train.seed)
        sampler.set_epoch(epoch)
        order = [len(dataset[index.position][1]["labels"]) for index in sampler]
        steps = [order[start : start + 4] for start in range(0, len(order) - 3, 4)]
        count += sum((sum(step[0::2]) == 0) != (sum(step[1::2]) == 0) for step in steps)
    return count


@pytest.mark.slow
def test_two_machines_train_and_evaluate_as_one_process_does(tmp_path, machines):
    # 13 training and 5 evaluation images: neither divides evenly.
    data = ShapesConfig(num_train=13, num_val=5, image_size=64, min_objects=0, max_objects=1)
    one = tiny_experiment(epochs=2, batch_size=4)
    one = one.replace(data=data, model=one.model.replace(num_classes=3))
    two = one.replace(train=one.train.replace(batch_size=2))
    assert empty_batches_of_one_process(one)
    save_config(two, tmp_path / "two.json")
    launchers = start_training(machines, [str(tmp_path / "two.json"), "--output", str(tmp_path / "two")], logs=tmp_path)
    alone = train(one, tmp_path / "one")
    codes = [launcher.wait(timeout=240) for launcher in launchers]
    assert codes == [0, 0], (tmp_path / "machine0.log").read_text()

    losses = [[row["loss"] for row in RunDirectory(run).read_metrics()] for run in (tmp_path / "two", alone.run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    _, checkpoint = load_run(tmp_path / "two", prefer=["last.pt"])
    for name, weights in load_run(alone.run, prefer=["last.pt"])[1].model.items():
        assert (weights - checkpoint.model[name]).abs().max() < 1e-3, name
    found = evaluate_run(tmp_path / "two" / "last.pt", output=tmp_path / "alone.json", num_worst=0)
    assert found.metrics == checkpoint.metrics
