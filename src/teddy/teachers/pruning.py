"""Random structural pruning with DepGraph (§3.3, post-generation)."""

import copy

import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from teddy.core.errors import TeddyError
from teddy.teachers.networks import classifier


def prune_randomly(
    network: nn.Module, image_shape: tuple[int, int, int], ratio: float, seed: int
) -> nn.Module:
    """Copy of a network with a share of every layer's channels removed at random.

    Coupled layers (residual branches) lose the same channels; the classifier keeps its outputs.
    ImageNet's ResNet18 at ratio 0.19 has the paper's 7.72 M parameters and 1.2 GMACs.

    Args:
        network: converged network; not modified.
        image_shape: channels, height, width of its input.
        ratio: share of channels to remove, in [0, 1).
        seed: of this pool member.

    Raises:
        TeddyError: a ShuffleNet; DepGraph cannot follow a channel through its shuffles.

    Source: DepGraph (Fang et al., CVPR 2023), torch-pruning's ``BasePruner`` and
    ``RandomImportance``.
    """
    if type(network).__name__ == "ShuffleNetV2":  # the name, as importing torchvision is slow
        raise TeddyError(
            "ShuffleNetV2 cannot be pruned, its channels are shuffled: use another kind of pool, "
            "or a base run with convnet3, a ResNet, densenet121, mobilenet_v2 or efficientnet_b0"
        )
    pruned = copy.deepcopy(network).eval()
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # DepGraph follows the autograd graph
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # RandomImportance draws from the global generator
        torch_pruning.pruner.BasePruner(
            pruned,
            torch.zeros(1, *image_shape),
            importance=torch_pruning.importance.RandomImportance(),
            global_pruning=False,
            pruning_ratio=ratio,
            ignored_layers=[classifier(pruned)],
        ).step()
    return pruned


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply–accumulates of one forward pass of one image (the paper's "FLOPs", §8-26).

    Those of convolutions and matrix products alone: biases, normalisation, activations and pooling
    are not counted. torchvision's documentation counts alike, 1.814 billion for ResNet18.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()  # no arithmetic, nor a device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes_only(torch.zeros(1, *image_shape, device="meta"))
    return int(counter.get_total_flops()) // 2
