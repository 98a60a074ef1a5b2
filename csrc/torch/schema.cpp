// Every operator of torch.ops.sepconv. Backends register themselves: <op>_cpu.cpp.
//
// No Python.h and no PyInit: sepconv/_loader.py loads this library with torch.ops.load_library. Every type
// below is carried by libtorch's stable ABI from 2.10 on, std::string and ScalarType included.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sepconv, m) {
  // Images have four dimensions, (N, C, H, W), and any strides; results are dense in the memory format that
  // torch suggests for `input` (of row_average_backward: for `grad_output`). Weights are shaped as nn.Conv2d
  // has them: depthwise (C * multiplier, 1, kh, kw), pointwise (C_out, C * multiplier, 1, 1).
  m.def(
      "separable_conv2d(Tensor input, Tensor depthwise_weight, Tensor pointwise_weight,"
      " Tensor? depthwise_bias=None, Tensor? pointwise_bias=None,"
      " SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1) -> Tensor");
  // output_mask: input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias; the others are
  // None.
  m.def(
      "separable_conv2d_backward(Tensor grad_output, Tensor input, Tensor depthwise_weight,"
      " Tensor pointwise_weight, Tensor? depthwise_bias,"
      " SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool[5] output_mask)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  // Both weights in the order of the kernels of the current instruction set, as bytes: for that instruction
  // set, this build and nothing else, which the bytes say of themselves.
  m.def("pack_separable_conv2d(Tensor depthwise_weight, Tensor pointwise_weight) -> Tensor");
  // How many bytes that takes; the depthwise weight has `middle_channels`, C * multiplier.
  m.def(
      "packed_bytes_of_separable_conv2d(int middle_channels, int out_channels, int[2] kernel_size,"
      " ScalarType dtype) -> int");
  // activation(conv2d(middle_activation(conv2d(prologue_activation(input)))) + residual), for inference:
  // it has no gradient. Activations: 0 none, 1 ReLU, 2 ReLU6, 3 hard swish.
  m.def(
      "frozen_separable_conv2d(Tensor input, Tensor packed, Tensor? depthwise_bias, Tensor? pointwise_bias,"
      " Tensor? residual, SymInt out_channels, SymInt depth_multiplier, SymInt[2] kernel_size,"
      " SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
      " int prologue_activation=0, int middle_activation=0, int activation=0) -> Tensor");

  // avg_pool2d(input, (3, 1), (stride, 1), (1, 0), count_include_pad=False)
  m.def("row_average(Tensor input, int stride=1) -> Tensor");
  // `height` is that of the forward's input: several heights share one output height.
  m.def("row_average_backward(Tensor grad_output, SymInt height, int stride) -> Tensor");

  // conv2d(row_average(input, row_stride), weight, bias, stride, padding, dilation)
  m.def(
      "row_average_conv2d(Tensor input, Tensor weight, Tensor? bias=None,"
      " SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, int row_stride=1) -> Tensor");
  // output_mask: input, weight, bias.
  m.def(
      "row_average_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight,"
      " SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int row_stride, bool[3] output_mask)"
      " -> (Tensor, Tensor, Tensor)");

  // Units, [activation ->] convolution -> batch norm with the statistics of the batch, one after another,
  // then an activation. Of each unit: `kinds` says which weights it has (1 depthwise, 2 pointwise, 3 both, 0
  // neither); `parameters` holds these, then batch norm's weight and bias; `running` holds batch norm's
  // running mean, running variance and number of batches (or no elements), which are updated; `windows` holds
  // stride, padding and dilation. Results: the output; with `keep`, what the backward reads beside the
  // arguments: results of the convolutions, the last one only where it is no larger than four times its
  // weights (else it is computed again); and batch norm's vectors.
  m.def(
      "conv_chain(Tensor input, Tensor[] parameters, Tensor(a!)[] running, int[] kinds, int[] activations,"
      " int[] windows, float[] eps, float[] momentum, int activation, bool keep)"
      " -> (Tensor, Tensor[], Tensor)");
  // output_mask: input, then the parameters. Only wanted gradients are returned, in this order.
  m.def(
      "conv_chain_backward(Tensor grad_output, Tensor input, Tensor[] parameters, Tensor[] raws,"
      " Tensor statistics, int[] kinds, int[] activations, int[] windows, int activation,"
      " bool[] output_mask) -> Tensor[]");

  // The instruction set of the CPU kernels: "scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon" or
  // "neon_bf16".
  m.def("set_cpu_capability(str name) -> ()");
  m.def("cpu_capability() -> str");
  m.def("available_cpu_capabilities() -> str");  // comma separated, weakest first
  // What would run on the CPU for this shape, in words.
  m.def(
      "describe_separable_conv2d(int batch, int in_channels, int height, int width, int out_channels,"
      " int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int depth_multiplier,"
      " ScalarType dtype, bool channels_last) -> str");
  // The same of a GPU, which need not be there; a library without CUDA kernels has no implementation.
  m.def(
      "describe_separable_conv2d_cuda(int batch, int in_channels, int height, int width, int out_channels,"
      " int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int depth_multiplier,"
      " ScalarType dtype, bool channels_last, int multiprocessors, int shared_bytes) -> str");
  // Memory of large results on the CPU: gives back what no tensor uses; the bytes in use and kept; whether
  // any is kept.
  m.def("empty_cache() -> ()");
  m.def("memory_reserved() -> int");
  m.def("caches_memory() -> bool");
  // How this library was built: "compiler=...;torch=...;cuda=...".
  m.def("build_configuration() -> str");
}
