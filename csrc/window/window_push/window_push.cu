// Launchers of window_push_: the gradient's magnitude, the row with its products (int8: the row,
// then its products), and the sum of their parts.
#include "window/window_push/window_push.cuh"

namespace mfac::cuda {
namespace {

// The scratch of a push, taken apart.
struct PushScratch {
  double *partial, *magnitudes;
  int* refused;
  int64_t parts, part_columns;

  PushScratch(double* scratch, const DotShape& shape)
      : partial(scratch),
        magnitudes(scratch + shape.scratch()),
        refused(reinterpret_cast<int*>(magnitudes + 2 * kMagnitudeParts)),
        part_columns(std::max<int64_t>(kPushThreads, ceil_div(shape.d, kMagnitudeParts))) {
    parts = ceil_div(shape.d, part_columns);
  }
};

template <typename V>
int launch_magnitude(const V* gradient, int64_t d, const PushScratch& scratch, void* stream) {
  return MFAC_LAUNCH((magnitude_kernel<V>), dim3(unsigned(scratch.parts)), dim3(kPushThreads), stream, gradient, d,
                     scratch.part_columns, scratch.magnitudes);
}

dim3 push_grid(const DotShape& shape) { return dim3(unsigned(shape.row_groups() * shape.chunks())); }

}  // namespace

template <typename T, typename V>
int window_push(T* window, int64_t stride, int64_t m, int64_t d, int64_t row, const V* gradient, double limit,
                double* products, double* scratch, void* stream) {
  const DotShape shape{m, d, 1};
  const PushScratch in(scratch, shape);
  if (const int error = launch_magnitude(gradient, d, in, stream)) return error;
  const auto launch = [&](auto width) {
    return MFAC_LAUNCH((window_push_kernel<T, V, decltype(width)::value>), push_grid(shape), dim3(kPushThreads), stream,
                       window, stride, m, d, row, gradient, shape.chunk(), in.magnitudes, int(in.parts), limit,
                       in.partial, in.refused);
  };
  const int error = is_aligned(window, stride) ? launch(std::integral_constant<int, kPacket<T>>())
                                               : launch(std::integral_constant<int, 1>());
  return error ? error : sum_parts(in.partial, shape.chunks(), m, in.refused, products, stream);
}

int window_push_int8(int8_t* window, float* scales, int64_t stride, int64_t m, int64_t d, int64_t row,
                     const float* gradient, double limit, double* products, double* scratch, void* stream) {
  const DotShape shape{m, d, 1};
  const PushScratch in(scratch, shape);
  const int64_t tiles = ceil_div(d, kScaleColumns);
  if (const int error = launch_magnitude(gradient, d, in, stream)) return error;
  if (const int error =
          MFAC_LAUNCH(quantize_kernel, dim3(unsigned(tiles)), dim3(kPushThreads), stream, gradient, d, in.magnitudes,
                      int(in.parts), limit, window + row * stride, scales + row * tiles, in.refused))
    return error;
  const auto launch = [&](auto width) {
    return MFAC_LAUNCH((int8_products_kernel<decltype(width)::value>), push_grid(shape), dim3(kPushThreads), stream,
                       window, scales, stride, m, d, row, shape.chunk(), in.refused, in.partial);
  };
  const int error = is_aligned(window, stride) ? launch(std::integral_constant<int, kPacket<int8_t>>())
                                               : launch(std::integral_constant<int, 1>());
  return error ? error : sum_parts(in.partial, shape.chunks(), m, in.refused, products, stream);
}

#define MFAC_INSTANCE(T, V) \
  template int window_push<T, V>(T*, int64_t, int64_t, int64_t, int64_t, const V*, double, double*, double*, void*);
MFAC_FOR_FLOAT_WINDOWS_AND_VECTORS(MFAC_INSTANCE)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
