// whitened_norms(window, inverse_factor, single) -> s = ‖U_:j‖² with U = L⁻¹G, what the diagonal of F⁻¹ takes,
// (1 - s)/λ, and a bound on its rounding errors, both [d] float64. m²d flops, as L⁻¹ is triangular; U is never stored.
// In float64, or for float32 windows in float32.
//
// A task is a tile of columns, a panel of it at a time packed and multiplied with all of L⁻¹, while the next
// tile comes into L2.
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "common/adapter.h"
#include "cpu/tile_prefetch.h"
#include "curvature/whitened_norms/whitened_norms_bound.h"
#include "curvature/whitened_norms/whitened_norms_checks.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 256;

// L⁻¹ for register tiles, and what its rows contribute.
template <typename C>
struct PackedFactor {
  Buffer<C> tiles;             // [ceil(m / rows)][m][rows], zero above the diagonal and below the last row
  Buffer<C> norms, pair_sums;  // [ceil(m / rows) * rows], of the rows, by which they are divided; only where wanted
};

template <typename T, typename C>
PackedFactor<C> pack_factor(const double* inverse_factor, int64_t m) {
  const WhitenKernels<T, C>& kernel = static_kernels<T, C>().whiten;
  const int64_t rows = kernel.tile_rows, size = ceil_div(m, rows) * rows;
  const bool paired = kernel.add_pair_sums != nullptr;
  PackedFactor<C> packed{Buffer<C>(size * m, C(0)), Buffer<C>(size, C(1)), Buffer<C>(size, C(0))};
  for (int64_t i = 0; i < m; ++i) {
    const double* row = inverse_factor + i * m;
    if (paired) {  // not below the largest entry, where squares underflow
      double norm = std::sqrt(std::inner_product(row, row + i + 1, row, 0.0));
      for (int64_t k = 0; k <= i; ++k) norm = std::max(norm, std::abs(row[k]));
      packed.norms[i] = std::max(C(norm), std::numeric_limits<C>::min());
    }
    for (int64_t k = 0; k <= i; ++k)
      packed.tiles[i / rows * rows * m + k * rows + i % rows] = C(row[k] / packed.norms[i]);
  }
  std::vector<double> sums(rows);
  for (int64_t i = 0; paired && i < m; i += rows) {
    std::fill(sums.begin(), sums.end(), 0.0);
    kernel.add_pair_sums(packed.tiles.data() + i * m, std::min(i + rows, m), sums.data());
    std::copy(sums.begin(), sums.end(), packed.pair_sums.begin() + i);
  }
  return packed;
}

template <typename T, typename C>
std::vector<double> error_weights(const double* inverse_factor, int64_t m) {
  const WhitenKernels<T, C>& kernel = static_kernels<T, C>().whiten;
  std::vector<double> weights(m);
  for (int64_t i = 0; i < m; ++i) {
    const double* row = inverse_factor + i * m;
    const double squares = std::inner_product(row, row + i + 1, row, 0.0);
    const int64_t depth = std::min((i / kernel.tile_rows + 1) * kernel.tile_rows, m);
    weights[i] =
        kernel.add_pair_sums != nullptr ? paired_error_weight<C>(depth, m, squares) : error_weight<C>(i, m, squares);
  }
  return weights;
}

template <typename T, typename C>
void whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* inverse_factor, double* out,
                    double* errors) {
  const WhitenKernels<T, C>& kernel = static_kernels<T, C>().whiten;
  const int64_t width = kernel.panel_columns, rows = kernel.tile_rows;
  const PackedFactor<C> packed = pack_factor<T, C>(inverse_factor, m);
  const std::vector<double> weights = error_weights<T, C>(inverse_factor, m);
  const double squared_weights = std::inner_product(weights.begin(), weights.end(), weights.begin(), 0.0);
  const double unit = weight_unit(*std::max_element(weights.begin(), weights.end()));
  Buffer<C> relative(ceil_div(m, rows) * rows, C(0));
  for (int64_t i = 0; i < m; ++i) relative[i] = C(weights[i] / unit);
  parallel_tasks(ceil_div(d, kTileColumns), m * m * kTileColumns, [&](int64_t begin, int64_t end) {
    Buffer<C> panel(m * width), pair_sums(ceil_div(m, rows) * width), units(width);
    Buffer<C> squares(width), norms(width), weighted(width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * kTileColumns, cols = std::min(kTileColumns, d - column);
      const int64_t next = tile + 1 < end ? std::min(kTileColumns, d - column - cols) : 0;
      TilePrefetch ahead(window + column + cols, stride * sizeof(T), m, next * sizeof(T),
                         ceil_div(cols, width) * ceil_div(m, rows));
      for (int64_t j = 0; j < cols; j += width) {
        kernel.pack(window + column + j, stride, m, std::min(width, cols - j), panel.data(), squares.data(),
                    units.data(), pair_sums.data());
        std::fill(norms.begin(), norms.end(), C(0));
        std::fill(weighted.begin(), weighted.end(), C(0));
        for (int64_t i = 0; i < m; i += rows) {
          ahead.step();
          const WhitenRows<C> tile_rows{packed.tiles.data() + i * m, relative.data() + i, packed.norms.data() + i,
                                        packed.pair_sums.data() + i};
          kernel.tile(tile_rows, std::min(i + rows, m), panel.data(), units.data(), pair_sums.data() + i / rows * width,
                      norms.data(), weighted.data());
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
