"""What the rows of each section of the results are."""

from __future__ import annotations

from rpn_jax.benchmark.figures import Section
from rpn_jax.benchmark.training import BOXES

NOTES = {
    "peaks": "Peak rates of this device in this run: of a large matrix product, and of a large "
    "copy (bytes read plus bytes written).",
    "inference": "The pictures are on the device, as uint8. Post-processing and its parts get "
    "generated head outputs with 40 objects per picture, and RoIAlign gets the proposals that "
    "follow from them. 'second stage' and 'end to end' use the outputs of random weights. A time "
    "is that of one call until its results exist. memory_mb: arguments, results and temporaries of "
    "the compiled program. share_of_roofline: the larger of FLOPs / peak rate and bytes / peak "
    "copy rate, divided by the time; left out on GPUs, where XLA does not count all bytes.",
    "training": f"Forward pass, matching, sampling, losses, backward pass and SGD, {BOXES} boxes "
    "per picture. devices: the largest number of devices that divides the batch. memory_mb and "
    "achieved_tflops are those of one device. The RPN head is computed at the sampled cells only. "
    "A Faster R-CNN also computes it at all cells, without gradient, for the proposals that train "
    "its second stage.",
    "matching": "Matching, sampling and targets of one picture's anchors.",
    "inference_peers": "PyTorch in the same run, with the same weights, pictures, anchors and "
    "sizes. Its norms are not folded into its convolutions. first_call_s includes compiling and "
    "autotuning. times_ours_P: PyTorch's time divided by ours for the same stage with precision "
    "P; above 1 ours is faster. On a CPU both are timed in turns, on a GPU one after the other.",
    "training_peers": "PyTorch in the same run, on one device. torchvision's step has matching, "
    "sampling and its losses, but makes no proposals. Plain PyTorch's step has a simple loss, "
    "without matching and sampling. times_ours_P: PyTorch's time divided by ours with precision "
    "P; above 1 ours is faster. On a CPU both are timed in turns, on a GPU one after the other.",
    "keras_hub": "KerasHub's RetinaNet with ResNet-50-FPN, 80 classes, on Keras's JAX backend in a "
    "separate process, one after the other. It is another network: a single stage with levels 3 "
    "to 7. 'end to end' decodes its boxes and removes overlapping ones. times_ours_P: its time "
    "divided by ours for the same stage with precision P.",
    "growth": "unit_cost_to_first: time per unit, divided by that of the axis's first row; 1 is "
    "linear growth. Batch size and megapixels: end to end. Candidates: post-processing. Boxes: "
    "matching and sampling. Devices: the training step, with the same batch on each device.",
    "worst_cases": "NMS of one picture's levels.",
    "reading": "Files decoded, resized, padded and batched on the host; with resize 'device' they "
    "are not resized.",
    "files": "From files to proposals on the host. device_pictures_per_s: the device by itself, "
    "with full batches of resized pictures.",
    "imports": "In a new interpreter.",
    "memory": "Peak memory of a new process that compiles and runs inference, with weights of the "
    "size of loaded ones.",
    "configs": "End to end on the device: fps is pictures per second at the median time, memory_mb "
    "that of the compiled program. train_: the same for the training step. Configs that differ in "
    "the schedule only share their figures.",
}
"""Note of each section, by its name."""


def section(name: str) -> Section:
    """Return a section with its note, without rows."""
    return Section(name, NOTES[name], [])
