// whitened_norms(window, inverse_factor, single) -> ‖U_:j‖² with U = L⁻¹G, [d] float64: what the diagonal of F⁻¹ takes,
// (1 - ‖U_:j‖²)/λ. m²d flops, as L⁻¹ is triangular; U is never stored. In float64, or for float32 windows in float32.
//
// A task is a tile of columns: packed once into the thread's L2, then a panel at a time against all of L⁻¹.
#include "adapter.h"
#include "tile_prefetch.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 256;

// [ceil(m / rows)][m][rows] for register tiles of `rows`, zero above the diagonal and below the last row
template <typename C>
Buffer<C> pack_factor(const double* factor, int64_t m, int64_t rows) {
  Buffer<C> packed(ceil_div(m, rows) * rows * m, C(0));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t k = 0; k <= i; ++k) packed[i / rows * rows * m + k * rows + i % rows] = C(factor[i * m + k]);
  return packed;
}

template <typename T, typename C>
void whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* factor, double* out) {
  const WhitenKernels<T, C>& kernel = static_kernels<T, C>().whiten;
  const int64_t width = kernel.panel_columns, rows = kernel.tile_rows;
  const Buffer<C> packed = pack_factor<C>(factor, m, rows);
  parallel_tasks(ceil_div(d, kTileColumns), m * m * kTileColumns, [&](int64_t begin, int64_t end) {
    Buffer<C> panels(m * kTileColumns), norms(width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * kTileColumns, cols = std::min(kTileColumns, d - column);
      const int64_t next = tile + 1 < end ? std::min(kTileColumns, d - column - cols) : 0;
      TilePrefetch ahead(window + column + cols, stride * sizeof(T), m, next * sizeof(T),
                         ceil_div(cols, width) * ceil_div(m, rows));
      kernel.pack(window + column, stride, m, cols, panels.data());
      for (int64_t j = 0; j < cols; j += width) {
        std::fill(norms.begin(), norms.end(), C(0));
        for (int64_t i = 0; i < m; i += rows) {
          ahead.step();
          kernel.tile(packed.data() + i * m, panels.data() + j * m, std::min(i + rows, m), norms.data());
        }
        for (int64_t i = 0; i < std::min(width, cols - j); ++i) out[column + j + i] = double(norms[i]);
      }
    }
  });
}

Tensor whitened_norms_cpu(const Tensor& window, const Tensor& inverse_factor, bool single) {
  constexpr const char* op = "whitened_norms";
  check_rows(op, "window", window);
  check_dense_f64(op, "inverse_factor", inverse_factor);
  const int64_t m = window.size(0), d = window.size(1);
  check_shape(op, "inverse_factor", inverse_factor, {m, m});
  STD_TORCH_CHECK(!single || is_float(window), op, ": Parameter `single` should be False for a float64 window.");
  Tensor out = empty_f64(window, {d});
  const double* factor = elements<double>(inverse_factor);
  double* norms = out.mutable_data_ptr<double>();
  if (is_double(window))
    whitened_norms<double, double>(elements<double>(window), window.stride(0), m, d, factor, norms);
  else if (single) whitened_norms<float, float>(elements<float>(window), window.stride(0), m, d, factor, norms);
  else whitened_norms<float, double>(elements<float>(window), window.stride(0), m, d, factor, norms);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("whitened_norms", TORCH_BOX(&whitened_norms_cpu)); }

}  // namespace mfac
