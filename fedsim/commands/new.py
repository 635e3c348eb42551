"""`fedsim new`: a small file that works as it is, to start from.

What it writes is complete: it runs, and is meant to be changed line by line while it goes on running.
"""

from __future__ import annotations

import importlib.util
import keyword
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from fedsim.facts import BadInput

What = Literal["policy", "scenario", "model"]


def new(what: What, name: str, folder: Path = Path()) -> Path:
    """Write NAME.py (or NAME.yaml for a scenario) into an existing folder, and return its path.

    BadInput for a name that Python cannot import or that is taken, a folder that is missing, or a file that exists.
    """
    if what not in get_args(What):
        raise BadInput(f"{what!r} cannot be made; choose one of: {', '.join(get_args(What))}")
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise BadInput(f"the name {name!r} must be letters, digits and '_', a letter first, such as my_{what}")
    path = folder / f"{name}{'.yaml' if what == 'scenario' else '.py'}"
    if path.exists():
        raise BadInput(f"{path} exists and is left as it is; choose another name, or delete the file")
    if path.suffix == ".py" and _is_taken(name):
        raise BadInput(f"{name} is the name of an installed Python module, which would be found first; choose another")
    text = _TEXTS[what](name)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as problem:
        raise BadInput(f"{path} cannot be written: {(problem.strerror or str(problem)).lower()}") from None
    return path


def _is_taken(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that runs now and has no file, such as __main__
        return True


def _class_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "Mine"


def _policy(name: str) -> str:
    return f'''"""{name}: the server waits for the `k` fastest uploads and averages them; the other devices are cancelled.

Use it in a scenario, from this folder:

    policies:
      - kind: {name}:{_class_name(name)}
        k: 5
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class {_class_name(name)}:
    """k: uploads that the server waits for. local_steps: taken from `training` if the entry does not state them."""

    k: Annotated[int, Ge(1)]
    local_steps: Annotated[int, Ge(1)] = 5

    source: ClassVar[str] = "your own idea, or the paper's authors, title, arXiv number and section"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        return [] if self.k <= n else [f"k is {{self.k}} but the fleet has {{n}} devices; choose 1..{{n}}"]

    def rounds(self, server: Server) -> Rounds:
        while True:
            jobs = server.send(server.sample(), Task(n_steps=self.local_steps))
            yield from server.wait(jobs, arrivals(self.k))
            arrived = server.take(jobs)
            server.cancel(jobs)
            server.aggregate(arrived, weights.mean(arrived))
'''


def _model(name: str) -> str:
    return f'''"""{name}: a small chain of layers, each a named block.

Use it in a scenario, from this folder:

    model: {{kind: "{name}:build", width: 64}}

Each child of the nn.Sequential is one layer of the model, from the input to the output; a block may hold anything inside.
"""

import math
from collections import OrderedDict
from typing import Annotated

from annotated_types import Ge
from torch import nn


def build(input_shape: tuple[int, ...], n_outputs: int, width: Annotated[int, Ge(1)] = 64) -> nn.Sequential:
    """Three layers. input_shape: of one sample; n_outputs: the number of classes."""
    n_inputs = math.prod(input_shape)
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, width), nn.ReLU()),
            second=nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            last=nn.Sequential(nn.Linear(width, n_outputs)),
        )
    )
'''


def _scenario(name: str) -> str:
    return f"""# The question: does waiting for the 5 fastest of 20 devices reach 90 % accuracy sooner than waiting for all?
# Source: yours. Run time: under a minute. Run it with: fedsim run {name}.yaml
name: {name if name[0].isalpha() else f"scenario{name}"}

fleet:
  n_devices: 20
  compute:
    step_s: 0.1                                     # seconds of a local step over all layers
    device_factor: {{kind: lognormal, sigma: 0.5}}    # persistent: some devices are slower than others
    step_factor: {{kind: exponential, mean: 1.0}}     # drawn anew for each step
  uplink: {{rate_bits_per_s: 20e6, latency_s: 0.05}}

data: {{kind: digits, partition: {{kind: dirichlet, alpha: 0.5}}}}
model: {{kind: mlp, widths: [64, 64, 64]}}
training: {{local_steps: 5, batch_size: 16, learning_rate: 0.1}}

policies:
  - kind: fedavg                                    # waits for everybody
  - kind: stsyn                                     # stops everybody when the 5th is through; all finished steps count
    k: 5

seeds: [0, 1, 2]
evaluation: {{targets: [0.8, 0.9]}}
stop: {{simulated_s: 60}}
"""


_TEXTS: dict[What, Callable[[str], str]] = {"policy": _policy, "scenario": _scenario, "model": _model}
