// Launcher of window_descend_: one launch for every kMostPieces parameters.
#include "cuda/output.cuh"
#include "window/window_combine/window_combine.cuh"

namespace mfac::cuda {

template <typename T, typename V>
int window_descend(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, const DescentPieces<V>& descent, void* stream) {
  const auto launch_runs = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    return for_runs(descent, d, kWarp * kWidth, [&](int64_t first_block, int64_t blocks, const Descent<V>& output) {
      return launch_combine<T, kWidth, 1>(window, scales, stride, m, d, coefficients, 1, first_block, blocks, output,
                                          stream);
    });
  };
  if (is_aligned(window, stride)) return launch_runs(std::integral_constant<int, kPacket<T>>());
  return launch_runs(std::integral_constant<int, 1>());
}

#define MFAC_INSTANCE(T, V)                                                                           \
  template int window_descend<T, V>(const T*, const float*, int64_t, int64_t, int64_t, const double*, \
                                    const DescentPieces<V>&, void*);
MFAC_FOR_WINDOWS_AND_VECTORS(MFAC_INSTANCE)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
