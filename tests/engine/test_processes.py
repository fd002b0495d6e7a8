"""A single process. Several are tested with the command line."""

import torch

from deformdetr.engine import Processes


def test_a_single_process_communicates_with_itself():
    processes = Processes()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    assert processes.mean({"a": 1.5, "b": -2.0}) == {"a": 1.5, "b": -2.0}
    assert processes.gather({"x": [1]}) == [{"x": [1]}]
    assert processes.broadcast("text") == "text"
    processes.wait()


def test_prepared_model_of_one_process_is_the_model():
    processes = Processes()
    model = torch.nn.Linear(2, 1).to(processes.device)
    prepared = processes.prepare(model)
    with processes.main_first(), processes.exchange(prepared, enabled=False):
        processes.backward(prepared(torch.ones(1, 2, device=processes.device)).sum())
    assert model.weight.grad is not None
