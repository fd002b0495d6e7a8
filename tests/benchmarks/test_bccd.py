"""What README and guide say of a training run, and the stored results that it is written from."""

import json

import pytest
from benchmarks import bccd
from benchmarks.pages import generated_part


@pytest.fixture(scope="module")
def results():
    return json.loads(bccd.STORED.read_text())


def test_readme_and_guide_are_those_of_the_stored_results(results):
    assert generated_part(bccd.README) == bccd.summary(results)
    assert generated_part(bccd.GUIDE) == f"{bccd.summary(results)}\n\n{bccd.table(results)}"


def test_the_loss_fell_and_precision_rose(results):
    losses = [row["loss"] for row in results["epochs"]]
    precisions = [row["AP"] for row in results["epochs"] if row.get("AP") is not None]
    assert losses[-1] < losses[0] / 2
    assert precisions[-1] > precisions[0]
