"""One inference of the reference model on one thread: our engine on the bundle's graph, beside eager torch."""

import time

import numpy as np
import torch
from _measure import finish

from nfl_core.config import ModelSection
from nfl_core.learning import create_model, default_spec, export_graph, schema_of, state_of
from nfl_edge.infer.ort import OrtEngine


def main(runs: int = 400) -> None:
    """Infer `runs` times with each, in turn, and print one JSON line."""
    torch.set_num_threads(1)
    model = ModelSection()
    module = create_model(model.name, num_classes=model.num_classes, input_shape=model.input_shape, seed=0).eval()
    schema, state = schema_of(module, default_spec()), state_of(module)
    shared, private = ({t.name: state[t.name] for t in part} for part in (schema.shared, schema.private))
    engine = OrtEngine.build(
        export_graph(module, schema), shared=shared, private=private, input_shape=model.input_shape
    )
    x = np.random.default_rng(0).random((1, *model.input_shape), dtype=np.float32)
    x_torch, milliseconds = torch.from_numpy(x), {"ours": [], "torch_eager": []}
    for _ in range(runs + 20):
        started = time.perf_counter()
        engine.run(x)
        between = time.perf_counter()
        with torch.inference_mode():
            module(x_torch)
        milliseconds["torch_eager"].append(1000 * (time.perf_counter() - between))
        milliseconds["ours"].append(1000 * (between - started))
    figures = {
        name: {"ms_p50": float(np.percentile(values[20:], 50)), "ms_p99": float(np.percentile(values[20:], 99))}
        for name, values in milliseconds.items()
    }
    finish("infer", ours=figures["ours"], against={"torch_eager": figures["torch_eager"]}, runs=runs)
