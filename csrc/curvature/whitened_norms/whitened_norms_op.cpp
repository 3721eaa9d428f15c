// whitened_norms(window, inverse_factor, single) -> s = ‖U_:j‖² with U = L⁻¹G, what the diagonal of
// F⁻¹ takes, (1 - s)/λ, and a bound on its rounding errors, both [d] float64. m²d flops, as L⁻¹ is
// triangular; U is never stored. In float64, or for float32 windows in float32.
//
// A task is a tile of columns, a panel of it at a time packed and multiplied with all of L⁻¹, while
// the next tile comes into L2.
#include <numeric>
#include <tuple>

#include "common/adapter.h"
#include "cpu/tile_prefetch.h"
#include "curvature/whitened_norms/whitened_norms_bound.h"
#include "curvature/whitened_norms/whitened_norms_checks.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 256;  // at most, whole panels

// [ceil(m / rows)][m][rows] for register tiles of `rows`, zero above the diagonal and below the
// last row
template <typename C>
Buffer<C> pack_factor(const double* inverse_factor, int64_t m, int64_t rows) {
  Buffer<C> packed(ceil_div(m, rows) * rows * m, C(0));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t k = 0; k <= i; ++k) packed[i / rows * rows * m + k * rows + i % rows] = C(inverse_factor[i * m + k]);
  return packed;
}

template <typename C>
std::vector<double> error_weights(const double* inverse_factor, int64_t m) {
  std::vector<double> weights(m);
  for (int64_t i = 0; i < m; ++i) {
    const double* row = inverse_factor + i * m;
    weights[i] = error_weight<C>(i, m, std::inner_product(row, row + i + 1, row, 0.0));
  }
  return weights;
}

template <typename T, typename C>
void whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* inverse_factor, double* out,
                    double* errors) {
  const WhitenKernels<T, C>& kernel = kernels<WhitenKernels<T, C>>();
  const int64_t width = kernel.panel_columns, rows = kernel.tile_rows, tile_columns = kTileColumns / width * width;
  const Buffer<C> packed = pack_factor<C>(inverse_factor, m, rows);
  const std::vector<double> weights = error_weights<C>(inverse_factor, m);
  const double squared_weights = std::inner_product(weights.begin(), weights.end(), weights.begin(), 0.0);
  const double unit = weight_unit(*std::max_element(weights.begin(), weights.end()));
  Buffer<C> relative(ceil_div(m, rows) * rows, C(0));
  for (int64_t i = 0; i < m; ++i) relative[i] = C(weights[i] / unit);
  parallel_tasks(ceil_div(d, tile_columns), m * m * tile_columns, [&](int64_t begin, int64_t end) {
    Buffer<C> panel(m * width), squares(width), norms(width), weighted(width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * tile_columns, cols = std::min(tile_columns, d - column);
      const int64_t next = tile + 1 < end ? std::min(tile_columns, d - column - cols) : 0;
      TilePrefetch ahead(window + column + cols, stride * sizeof(T), m, next * sizeof(T),
                         ceil_div(cols, width) * ceil_div(m, rows));
      for (int64_t j = 0; j < cols; j += width) {
        kernel.pack(window + column + j, stride, m, std::min(width, cols - j), panel.data(), squares.data());
        std::fill(norms.begin(), norms.end(), C(0));
        std::fill(weighted.begin(), weighted.end(), C(0));
        for (int64_t i = 0; i < m; i += rows) {
          ahead.step();
          kernel.tile(packed.data() + i * m, panel.data(), std::min(i + rows, m), relative.data() + i, norms.data(),
                      weighted.data());
        }
        for (int64_t i = 0; i < std::min(width, cols - j); ++i) {
          out[column + j + i] = norms[i];
          errors[column + j + i] = error_bound<C>(m, squares[i], norms[i], weighted[i], unit, squared_weights);
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor> whitened_norms_cpu(const Tensor& window, const Tensor& inverse_factor, bool single) {
  check_whitened_norms(window, inverse_factor, single);
  const int64_t m = window.size(0), d = window.size(1);
  Tensor norms = empty_f64(window, {d}), errors = empty_f64(window, {d});
  const auto run = [&](auto* window_type, auto* arithmetic) {
    using T = element_t<decltype(window_type)>;
    whitened_norms<T, element_t<decltype(arithmetic)>>(
        elements<T>(window), window.stride(0), m, d, elements<double>(inverse_factor), norms.mutable_data_ptr<double>(),
        errors.mutable_data_ptr<double>());
  };
  const auto in_double = static_cast<double*>(nullptr);
  dispatch_float(window, [&](auto* type) {
    if (single) run(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    else run(type, in_double);
  });
  return {norms, errors};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("whitened_norms", TORCH_BOX(&whitened_norms_cpu)); }

}  // namespace mfac
