// The table of one instruction set. Dtypes are listed here, in the order of DType, and nowhere else in the
// kernels.

constexpr Kernels make_kernels() {
#define SEPCONV_FOR_EACH_DTYPE(kernel)                               \
  {                                                                  \
    kernel<float>, kernel<double>, kernel<BFloat16>, kernel<Float16> \
  }
  return {{tile_shape<float>(), tile_shape<double>(), tile_shape<float>(), tile_shape<float>()},
          SEPCONV_FOR_EACH_DTYPE(packed_bytes),
          SEPCONV_FOR_EACH_DTYPE(pack),
          SEPCONV_FOR_EACH_DTYPE(separable_conv2d),
          SEPCONV_FOR_EACH_DTYPE(separable_conv2d_backward),
          SEPCONV_FOR_EACH_DTYPE(row_average),
          SEPCONV_FOR_EACH_DTYPE(row_average_backward),
          SEPCONV_FOR_EACH_DTYPE(row_average_conv2d),
          SEPCONV_FOR_EACH_DTYPE(row_average_conv2d_backward),
          SEPCONV_FOR_EACH_DTYPE(batch_norm_statistics),
          SEPCONV_FOR_EACH_DTYPE(batch_norm),
          SEPCONV_FOR_EACH_DTYPE(batch_norm_backward)};
#undef SEPCONV_FOR_EACH_DTYPE
}
