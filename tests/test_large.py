"""Large tensors: 64-bit arithmetic where offsets or counts pass 2^31, and huge pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from cases import BUILD
from operators import OPERATORS, check
from profiles import nightly_only
from samples import integers

import sepconv

BEYOND_INT32 = 2**31 + 12


@pytest.fixture(autouse=True)
def nothing_kept():
    """Results of gigabytes leave no room for each other."""
    yield
    sepconv.empty_cache()


def _memory_bytes():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def spread(tmp_path):
    """Copies a tensor to a view whose stride along one axis is beyond 2^31 elements.

    The storage is a sparse file, of which only the touched pages take space.
    """

    def copy(values, axis):
        strides = list(values.contiguous().stride())
        strides[axis] = BEYOND_INT32
        length = sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True)) + 1
        try:
            with open(tmp_path / "storage", "wb") as file:
                file.truncate(length * values.element_size())
            storage = torch.from_file(str(tmp_path / "storage"), shared=True, size=length, dtype=values.dtype)
        except (OSError, RuntimeError) as error:
            pytest.skip(
                f"no sparse file of {length * values.element_size() >> 30} GiB in {tmp_path}: {error}"
            )
        view = storage.as_strided(values.shape, strides)
        view.copy_(values)
        return view

    return copy


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_offsets_in_the_input_may_pass_32_bits(operator, axis, spread, capability):
    sizes = (
        {"channels": 3, "height": 3, "width": 3}
        if operator.name == "row_average"
        else {
            "in_channels": 3,
            "output_size": (3, 3),
        }
    )
    tensors, config, grad_output = BUILD[operator.name](integers, **sizes)
    tensors["input"] = spread(tensors["input"], axis)
    check(operator, tensors, config, grad_output, exact=True)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_offsets_in_the_output_gradient_may_pass_32_bits(operator, axis, spread, capability):
    sizes = (
        {"channels": 3, "height": 3, "width": 3}
        if operator.name == "row_average"
        else {
            "out_channels": 3,
            "output_size": (3, 3),
        }
    )
    tensors, config, grad_output = BUILD[operator.name](integers, **sizes)
    check(operator, tensors, config, spread(grad_output, axis), exact=True)


def test_the_input_may_have_more_than_2_31_elements(capability):
    """An expanded image of 3.6e9 pixels, sampled by a large stride."""
    image = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 60000, 60000)
    weights = torch.ones(2, 1, 3, 3), torch.tensor([[1.0, 3.0]]).view(1, 2, 1, 1)
    output = torch.ops.sepconv.separable_conv2d(image, *weights, stride=[25000, 25000])
    assert torch.equal(output, torch.full((1, 1, 3, 3), 9.0 + 3 * 18.0))
    window = [[25000, 25000], [0, 0], [1, 1]]
    gradients = torch.ops.sepconv.separable_conv2d_backward(
        torch.ones_like(output), image, *weights, None, *window, [False, True, True, False, False]
    )
    assert torch.equal(gradients[1], torch.tensor([9.0, 2 * 9 * 3.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3))
    assert torch.equal(gradients[2].flatten(), torch.tensor([81.0, 162.0]))


@nightly_only
@pytest.mark.skipif(
    _memory_bytes() < 12 << 30, reason="needs 12 GiB of memory for a result of 2^31 bfloat16 numbers"
)
@pytest.mark.parametrize("name", ["separable_conv2d", "row_average", "row_average_conv2d"])
def test_the_output_may_have_more_than_2_31_elements(name):
    height = width = 46400  # 46400^2 > 2^31
    rows = (torch.arange(height) % 64).to(torch.bfloat16)
    image = rows.view(1, 1, height, 1).expand(1, 1, height, width)
    one = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    weights = {"separable_conv2d": (one, one * 2), "row_average": (), "row_average_conv2d": (one * 2,)}[name]
    output = getattr(torch.ops.sepconv, name)(image, *weights)
    assert output.numel() > 2**31
    column = getattr(torch.ops.sepconv, name)(image[..., :1], *weights)
    for start in range(0, height, 4096):
        assert torch.equal(
            output[..., start : start + 4096, :],
            column[..., start : start + 4096, :].expand(-1, -1, -1, width),
        )


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="this kernel has no transparent huge pages",
)
def test_large_results_ask_for_huge_pages():
    """Fresh memory costs a page fault a page: 512 times as many with small ones."""
    output = torch.ops.sepconv.row_average(torch.ones(1, 16, 1024, 1024), 1)
    middle = output.data_ptr() + output.nbytes // 2
    mapping = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            mapping = range(int(found[1], 16), int(found[2], 16))
        elif line.startswith("VmFlags:") and mapping is not None and middle in mapping:
            assert "hg" in line.split()
            return
    pytest.fail("the output lies in no mapping")
