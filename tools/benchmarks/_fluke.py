"""Run FedAvg, FedRep and Ditto of fluke-fl on owners and first weights that ours were given: `_fluke.py FOLDER`.

Started by outside.py with the Python of an environment that holds fluke-fl. Reads `setting.json`, `owners.safetensors`
and `initial.safetensors` in FOLDER; writes `fluke.json`, accuracies by method, round and client, and
`fluke.safetensors`, weights after the first round, `METHOD.shared.NAME` and `METHOD.PLACE.NAME`.

Two things are ours: the model, and a loader that draws the order of the samples from a generator of each client's own,
as our learner does. Training, averaging, personal models and scoring are fluke's.
"""

from __future__ import annotations

import json
import os
import sys
import types
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn

# fluke.nets imports three ResNets of torchvision at its top, which none of the three algorithms uses: it gets empty
# names instead, and they are taken away again before torchmetrics asks whether torchvision is there.
_stub = types.ModuleType("torchvision.models")
_stub.resnet18 = _stub.resnet34 = _stub.resnet50 = None
sys.modules.update({"torchvision": types.ModuleType("torchvision"), "torchvision.models": _stub})
from fluke.nets import EncoderHeadNet  # noqa: E402

del sys.modules["torchvision"], sys.modules["torchvision.models"]

from fluke import FlukeENV  # noqa: E402
from fluke.algorithms import CentralizedFL  # noqa: E402
from fluke.algorithms.ditto import Ditto, DittoClient  # noqa: E402
from fluke.algorithms.fedavg import FedAVG  # noqa: E402
from fluke.algorithms.fedrep import FedRep, FedRepClient, FedRepServer  # noqa: E402
from fluke.client import Client  # noqa: E402
from fluke.config import OptimizerConfigurator  # noqa: E402
from fluke.data import FastDataLoader  # noqa: E402
from fluke.evaluation import ClassificationEval  # noqa: E402
from fluke.server import Server  # noqa: E402
from fluke.utils import ClientObserver, FederationObserver  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from nfl_core.learning import create_model, load_state  # noqa: E402


class OrderedLoader(FastDataLoader):
    """fluke's loader; its own generator draws the order of every epoch over the samples as they were given."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, *, batch_size: int, seed: int) -> None:
        super().__init__(x, y, num_labels=10, batch_size=batch_size, skip_singleton=False)
        self._given = (x, y)
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> OrderedLoader:
        """Start an epoch."""
        order = torch.randperm(self.size, generator=self._generator)
        self.tensors = [tensor[order] for tensor in self._given]
        return super().__iter__()


class Witness(ClientObserver, FederationObserver):
    """Keeps what fluke reports: accuracies before the local epochs, so after a merge, and weights after round one.

    Args:
        model: The one whose parameters lend their names.
        initial: The same, as fluke sees it.
    """

    def __init__(self, model: nn.Module, initial: EncoderHeadNet) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names = {name: names[id(parameter)] for name, parameter in initial.named_parameters()}
        self._rows: dict[int, dict[int, float]] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.algorithm: CentralizedFL | None = None

    def client_evaluation(self, round: int, client_id: int, phase: str, evals: dict[str, float], **_: object) -> None:  # noqa: A002  fluke's name
        """Take one client's evaluation; round -1 is after the last merge."""
        if phase == "pre-fit":
            self._rows.setdefault(round, {})[client_id] = evals["accuracy"]

    def end_round(self, round: int) -> None:  # noqa: A002  fluke's name
        """Copy all weights after the first round."""
        if round == 1:
            self._copy("shared", self.algorithm.server.model)
            for client in self.algorithm.clients:
                self._copy(str(client.index), client.local_model)

    def _copy(self, owner: str, module: nn.Module) -> None:
        # FedRep's server holds the encoder alone, its clients wrap the whole in one more module.
        for name, parameter in module.named_parameters():
            full = name.removeprefix("model.")
            full = full if full in self._names else f"_encoder.{full}"
            self.weights[f"{owner}.{self._names[full]}"] = parameter.detach().numpy().copy()

    def table(self) -> list[list[float]]:
        """Return accuracies [rounds][clients], after the merge of every round; before the first there was none."""
        rounds = [*sorted(number for number in self._rows if number > 1), -1]
        return [[self._rows[number][client] for client in sorted(self._rows[number])] for number in rounds]


def algorithm_of(method: str, setting: dict, owners: dict[str, np.ndarray], initial: nn.Module) -> CentralizedFL:
    """Make fluke's algorithm; every client gets its own copy of the same initial weights."""
    make_client, make_server, make = {
        "fedavg": (Client, Server, FedAVG),
        "fedrep": (FedRepClient, FedRepServer, FedRep),
        "ditto": (DittoClient, Server, Ditto),
    }[method]
    clients = []
    for place in range(setting["owners"]):
        train, test = (
            [torch.from_numpy(owners[f"{place}.{split}.{axis}"]) for axis in "xy"] for split in ("train", "test")
        )
        clients.append(
            make_client(
                index=place,
                **({} if method == "fedavg" else {"model": deepcopy(initial)}),
                train_set=OrderedLoader(
                    *train, batch_size=setting["batch_size"], seed=setting["seed"] * setting["owners"] + place
                ),
                test_set=FastDataLoader(*test, num_labels=10, batch_size=512, skip_singleton=False),
                optimizer_cfg=OptimizerConfigurator({"name": "SGD", "lr": setting["learning_rate"]}),
                loss_fn=nn.CrossEntropyLoss(),
                **setting["methods"][method],
            )
        )
    shared = initial.encoder if method == "fedrep" else initial
    server = make_server(model=deepcopy(shared), test_set=None, clients=clients, weighted=True)
    return make(len(clients), None, None, clients=clients, server=server)


def main(folder: Path) -> None:
    """Run the three methods and write what came out."""
    torch.set_num_threads(1)
    setting = json.loads((folder / "setting.json").read_text())
    owners = load_file(folder / "owners.safetensors")
    model = create_model("small-cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    load_state(model, load_file(folder / "initial.safetensors"))
    initial = EncoderHeadNet(encoder=nn.Sequential(model.body, model.middle), head=model.head)
    FlukeENV().set_evaluator(ClassificationEval(eval_every=1, n_classes=10))
    FlukeENV().set_eval_cfg(pre_fit=True, post_fit=False, locals=False, server=False)
    found, weights = {}, {}
    for method in setting["methods"]:
        witness = Witness(model, initial)
        witness.algorithm = algorithm_of(method, setting, owners, initial)
        witness.algorithm.set_callbacks(witness)
        witness.algorithm.run(n_rounds=setting["rounds"], eligible_perc=1)
        found[method] = witness.table()
        weights |= {f"{method}.{name}": array for name, array in witness.weights.items()}
    save_file(weights, folder / "fluke.safetensors")
    (folder / "fluke.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    main(Path(sys.argv[1]))
