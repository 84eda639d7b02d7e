"""A teacher as synthesis uses it: frozen, rewritten for speed, reporting BatchNorm's statistics.

The network is traced and written anew. Where a BatchNorm follows a convolution, its frozen affine
map is folded into the weights and the statistics of its input are had from those of its output;
statistics, affine map and activation become one function with one kept tensor
(:mod:`teddy.synthesis.engine.kernels`). What is rewritten is decided on the graph, layer by layer:

- fold: the convolution's output goes to that BatchNorm alone, both are called once, and no channel
  has ``|β| > FOLD_LIMIT·|γ|`` (γ = 0 included), which would drown the signal in the offset;
- otherwise the layer keeps its affine map, at the cost of one pass over the tensor;
- fuse an activation: it alone reads the BatchNorm's output;
- fuse a sum with a ReLU: it alone reads the sum, as where a residual branch ends.
"""

import contextlib
import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from teddy.core.errors import TeddyError
from teddy.objectives import Moments
from teddy.synthesis.engine import kernels
from teddy.synthesis.engine.kernels import Standard
from teddy.teachers.networks import batchnorms

FOLD_LIMIT = 64.0
"""Largest |β/γ| of a folded channel: rounding of the folded output, relative to its spread, grows
by this factor at most."""

_ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    functional.relu: "relu",
    torch.relu: "relu",
}


class Teacher:
    """A frozen network in eval mode that reports the statistics of its BatchNorm inputs.

    Args:
        network: frozen, in eval mode; left as it is. Layers that are not folded are shared with it.
        variance: convention of the batch variance, see :func:`teddy.objectives.moments`.

    Raises:
        TeddyError: no BatchNorm, one without running statistics or called twice, or a network
            whose structure depends on its inputs.
    """

    def __init__(self, network: nn.Module, variance: str) -> None:
        layers = batchnorms(network)
        if not layers:
            raise TeddyError("a teacher needs BatchNorm layers: Eq. 7 matches their statistics")
        self.running = [Moments(_known(n.running_mean), _known(n.running_var)) for n in layers]
        traced = _trace(network)
        folded = _foldable(traced)
        modules = dict(traced.named_modules()) | _fold(traced, folded)
        self.network: nn.Module = _rewrite(traced, modules, folded, observing=False)
        """Logits of images, folded, without statistics."""
        self.observer: nn.Module = _rewrite(traced, modules, folded, observing=True)
        """Logits, means and variances."""
        self.folded = sum(
            isinstance(module, _Observer) and module.affine is None
            for module in self.observer.modules()
        )
        """Number of BatchNorm layers that are folded."""
        self._correct(0 if variance == "biased" else 1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` alone."""
        output: Tensor = self.network(images)
        return output

    def observe(self, images: Tensor) -> tuple[Tensor, list[Moments]]:
        """Logits ``(N, K)`` and the input statistics of every BatchNorm layer, in module order."""
        output, means, variances = self.observer(images)
        return output, [Moments(*pair) for pair in zip(means, variances, strict=True)]

    @contextlib.contextmanager
    def biased(self) -> Iterator[None]:
        """Report the biased variance meanwhile, whichever the loss compares."""
        before = self._correction
        self._correct(0)
        yield
        self._correct(before)

    def _correct(self, correction: int) -> None:
        self._correction = correction
        for module in self.observer.modules():
            if isinstance(module, _Observer):
                module.correction = correction


def _known(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise TeddyError("a teacher's BatchNorm layers must keep running statistics")
    return buffer


def _trace(network: nn.Module) -> fx.GraphModule:
    try:
        traced = fx.symbolic_trace(network)
    except (fx.proxy.TraceError, TypeError) as error:
        raise TeddyError(f"cannot trace the teacher {type(network).__name__}: {error}") from None
    calls = [node.target for node in traced.graph.nodes if _is(traced, node, nn.BatchNorm2d)]
    if len(calls) != len(set(calls)) or len(calls) != len(batchnorms(network)):
        raise TeddyError("a teacher must use every BatchNorm layer exactly once")
    return traced


def _is(traced: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), kind)


# --------------------------------------------------------------------------------------- folding


def _foldable(traced: fx.GraphModule) -> dict[str, str]:
    """Convolution in front of each BatchNorm that folds, by name."""
    calls = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    found = {}
    for node in traced.graph.nodes:
        if not _is(traced, node, nn.BatchNorm2d):
            continue
        source = node.args[0]
        if (
            isinstance(source, fx.Node)
            and _is(traced, source, nn.Conv2d)
            and len(source.users) == 1
            and calls.count(str(source.target)) == 1
            and _well_scaled(traced.get_submodule(str(node.target)))
        ):
            found[str(node.target)] = str(source.target)
    return found


def _well_scaled(norm: nn.Module) -> bool:
    gamma, beta = norm.weight, norm.bias
    if not (isinstance(gamma, Tensor) and isinstance(beta, Tensor)):
        return True  # no affine map: 1 and 0
    # Not finite, or subnormal: 1/γ overflows.
    usable = gamma.abs() > torch.finfo(gamma.dtype).tiny ** 0.5
    return bool((usable & (beta.abs() <= FOLD_LIMIT * gamma.abs())).all())


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Factor γ/√(RV + ε), γ's substitute β and running mean, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = _known(norm.running_mean).double(), _known(norm.running_var).double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    return gamma / (var + norm.eps).sqrt(), beta, mean


def _fold(traced: fx.GraphModule, folded: dict[str, str]) -> dict[str, nn.Module]:
    """Convolutions that take their BatchNorm's affine map along, by name."""
    result: dict[str, nn.Module] = {}
    for name, source in folded.items():
        factor, beta, mean = _affine(traced.get_submodule(name))
        conv = copy.deepcopy(traced.get_submodule(source))
        assert isinstance(conv, nn.Conv2d)
        dtype = conv.weight.dtype
        weight = conv.weight.detach() * factor[:, None, None, None]
        bias = beta - mean * factor
        if conv.bias is not None:
            bias = bias + conv.bias.detach() * factor
        conv.weight = nn.Parameter(
            weight.to(dtype).contiguous(memory_format=torch.channels_last), requires_grad=False
        )
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        result[source] = conv
    return result


# ------------------------------------------------------------------------------------- rewriting


class _Observer(nn.Module):
    """BatchNorm and activation, with the statistics of the BatchNorm's input."""

    shift: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(self, norm: nn.Module, folded: bool, activation: str) -> None:
        super().__init__()
        factor, beta, mean = _affine(norm)
        dtype = _known(norm.running_mean).dtype  # type: ignore[arg-type]
        self.activation, self.correction = activation, 0
        self.affine: tuple[Tensor, Tensor] | None = None
        self.standard: Standard | None = None
        if folded:
            self.standard = Standard(beta.to(dtype), (1 / factor).to(dtype), mean.to(dtype))
        else:
            self.affine = factor.to(dtype), (beta - mean * factor).to(dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.observe(x, self.standard, self.affine, self.activation, self.correction)


class _Convolution(nn.Module):
    """A frozen convolution that keeps nothing for its backward pass."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv, padding = self.conv, self.conv.padding
        assert not isinstance(padding, str)
        return kernels.convolution(
            x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups
        )


class _InPlace(nn.Module):
    """An activation of what nobody else reads."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return kernels.ACTIVATIONS[self.activation].apply(x, inplace=True)


def _rewrite(
    traced: fx.GraphModule, modules: dict[str, nn.Module], folded: dict[str, str], observing: bool
) -> fx.GraphModule:
    """The network with folded layers; if ``observing``, it also returns all statistics."""
    graph, modules = copy.deepcopy(traced.graph), dict(modules)
    order = [name for name, m in traced.named_modules() if isinstance(m, nn.BatchNorm2d)]
    statistics: dict[str, tuple[fx.Node, fx.Node]] = {}
    for node in list(graph.nodes):
        if _is(traced, node, nn.BatchNorm2d):
            name, follower = str(node.target), _only_activation(traced, node)
            activation = "" if follower is None else _activation(traced, follower)
            key = f"rewritten_{order.index(name)}"
            with graph.inserting_before(follower or node):
                if observing:
                    modules[key] = _Observer(modules[name], name in folded, activation)
                    call = graph.call_module(key, node.args)
                    new, *pair = (
                        graph.call_function(operator.getitem, (call, i)) for i in range(3)
                    )
                    statistics[name] = (pair[0], pair[1])
                else:
                    new = node.args[0] if name in folded else node
                    if follower is not None:
                        modules[key] = _InPlace(activation)
                        new = graph.call_module(key, (new,))
            _replace(graph, [follower, node] if follower else [node], new)
        elif (summed := _summed(traced, node)) is not None:
            with graph.inserting_before(node):
                new = graph.call_function(kernels.add_relu, summed.args)
            _replace(graph, [node, summed], new)
        elif observing and node.users:  # the others keep less than PyTorch's
            _exchange(traced, graph, node, modules)
    if observing:
        output = next(node for node in graph.nodes if node.op == "output")
        columns = zip(*(statistics[name] for name in order), strict=True)
        output.args = ((output.args[0], *map(list, columns)),)
    graph.lint()
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    kept: dict[str, Any] = {name: module for name, module in modules.items() if name in used}
    kept |= _attributes(traced, graph)
    return fx.GraphModule(kept, graph, type(traced).__name__)


def _attributes(traced: fx.GraphModule, graph: fx.Graph) -> dict[str, Any]:
    """Parameters and buffers that the graph reads directly, by name."""
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {name: operator.attrgetter(name)(traced) for name in names}


def _replace(graph: fx.Graph, old: list[fx.Node], new: fx.Node) -> None:
    """Let the readers of ``old[0]`` read ``new``; drop ``old`` but ``new``."""
    old[0].replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    for node in old:
        if node is not new and not node.users:
            graph.erase_node(node)


def _exchange(
    traced: fx.GraphModule, graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]
) -> None:
    """Put a kernel in the place of a convolution, activation or pooling."""
    if _is(traced, node, nn.Conv2d):
        conv: Any = modules[str(node.target)]
        if (
            isinstance(conv, nn.Conv2d)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        ):
            modules[str(node.target)] = _Convolution(conv)
        return
    function, options = None, ()
    activation = _activation(traced, node)
    if activation == "relu":
        function = kernels.masked_relu
    elif activation:  # out of place: what it reads may be kept
        function = kernels.ACTIVATIONS[activation].apply
    elif _is(traced, node, nn.AvgPool2d):
        m: Any = traced.get_submodule(str(node.target))
        function = kernels.avg_pool
        options = (
            *map(_pair, (m.kernel_size, m.stride, m.padding)),
            m.ceil_mode, m.count_include_pad, m.divisor_override,
        )  # fmt: skip
    elif _is(traced, node, nn.MaxPool2d):
        m = traced.get_submodule(str(node.target))
        function = kernels.max_pool
        options = (*map(_pair, (m.kernel_size, m.stride, m.padding, m.dilation)), m.ceil_mode)
    if function is not None:
        with graph.inserting_before(node):
            _replace(graph, [node], graph.call_function(function, (node.args[0], *options)))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _activation(traced: fx.GraphModule, node: fx.Node) -> str:
    """Key of ``kernels.ACTIVATIONS`` that a node computes, or ``""``."""
    if node.op == "call_module":
        return _ACTIVATIONS.get(type(traced.get_submodule(str(node.target))), "")
    return _ACTIVATIONS.get(node.target, "") if node.op == "call_function" else ""


def _only_activation(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The activation that alone reads a node's value."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _activation(traced, users[0]) else None


def _summed(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The sum of two tensors that a node, a ReLU, alone reads."""
    if not node.users or _activation(traced, node) != "relu":
        return None
    source = node.args[0]
    if (
        isinstance(source, fx.Node)
        and source.op == "call_function"
        and source.target in (operator.add, torch.add)
        and not source.kwargs
        and len(source.args) == 2
        and all(isinstance(arg, fx.Node) for arg in source.args)
        and len(source.users) == 1
    ):
        return source
    return None
