// gram(window, single, squared_norms) -> G Gᵀ, sums in float64, products of a float32 window in float64 or float32. The
// rows' squared norms need only be about right: where products are paired (cpu/paired.inl), rows are scaled by them,
// and they are computed where they are not given.
//
// The columns are cut into slabs, one task each: a thread packs a tile of its slab, adds the products of every
// pair of panels of the lower triangle to its own sums, all in its own L2, and goes on to the next tile. The slabs'
// sums are added in order. The number of slabs depends on the shape alone, so the last bit does not depend on the
// number of threads. Flops: m²d, half of a general product. Extra memory: slabs·(m²/2 + m·kTileColumns) float64.
#include <cmath>
#include <limits>

#include "common/adapter.h"
#include "cpu/tile_prefetch.h"
#include "curvature/squared_norms/squared_norms.h"

namespace mfac {
namespace {

// Columns of a tile: of every length that sums may have, some whole number; with m = 256 a packed tile takes 480 KiB.
constexpr int64_t kTileColumns = 240;

// Columns of a panel that a register tile sweeps before its sums go to float64, which takes longest in float32; there
// it sweeps a whole tile, in sums of kSingleDepth or kPairedDepth products.
template <typename C>
constexpr int64_t kDepth = std::is_same_v<C, float> ? kTileColumns : kPairedDepth<double>;
static_assert(kTileColumns % kDepth<double> == 0 && kDepth<float> % kPairedDepth<float> == 0);

constexpr int64_t kFewestPaired = 192;  // rows for which pairs save more than a pass for the norms takes

// As many slabs as keep threads busy and their sums, m²/2 each, within 32 MiB; four where m is larger than that allows.
int64_t slab_count(int64_t m, int64_t d) {
  const int64_t affordable = std::clamp<int64_t>((int64_t{1} << 23) / (m * m + 1), 4, 16);
  return std::min(affordable, std::max<int64_t>(1, ceil_div(d, 4 * kTileColumns)));
}

// square [panel_rows, panel_rows] += the products of two packed panels, the next tile being asked for in between
template <typename T, typename C>
void add_panels(const GramKernels<T, C>& kernel, const C* a, const C* b, int64_t depth, double* square,
                TilePrefetch& ahead) {
  for (int64_t i = 0; i < kernel.panel_rows; i += kernel.tile_rows) {
    ahead.step();
    kernel.rows(a, b, i, depth, square + i * kernel.panel_rows, kernel.panel_rows);
  }
}

// sums [pairs, panel_rows, panel_rows] += the products over the slab's columns; pair_sums [panels * panel_rows]
template <typename T, typename C>
void accumulate_slab(const GramKernels<T, C>& kernel, const T* window, int64_t stride, int64_t m, int64_t cols,
                     const C* scales, double* sums, double* pair_sums) {
  const int64_t panel_rows = kernel.panel_rows, panels = ceil_div(m, panel_rows);
  Buffer<C> packed(panels * panel_rows * std::min(kTileColumns, cols));
  for (int64_t tile = 0; tile < cols; tile += kTileColumns) {
    const int64_t width = std::min(kTileColumns, cols - tile), next = std::min(kTileColumns, cols - tile - width);
    TilePrefetch ahead(window + tile + width, stride * sizeof(T), m, next * sizeof(T),
                       ceil_div(width, kDepth<C>) * panels * (panels + 1) / 2 * (panel_rows / kernel.tile_rows));
    for (int64_t row = 0; row < m; row += panel_rows) {
      C* panel = packed.data() + row * width;
      kernel.pack(window + row * stride + tile, stride, std::min(panel_rows, m - row), width, scales + row, panel);
      if (kernel.add_pair_sums != nullptr) kernel.add_pair_sums(panel, width, pair_sums + row);
    }
    for (int64_t k = 0; k < width; k += kDepth<C>) {
      double* square = sums;
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t q = 0; q <= p; ++q, square += panel_rows * panel_rows)
          add_panels(kernel, packed.data() + (p * width + k) * panel_rows, packed.data() + (q * width + k) * panel_rows,
                     std::min(kDepth<C>, width - k), square, ahead);
    }
  }
}

// Powers of two that bring the rows' norms into [√½, √2), as far as C's normal numbers reach. Where squares underflow
// to zero or overflow, those that the norm may then have are not far from balanced, and none overflows.
template <typename C>
Buffer<C> row_scales(const std::vector<double>& squared_norms, int64_t size) {
  constexpr int kMost = std::numeric_limits<C>::max_exponent - 2, kUnderflown = 537, kOverflown = -520;
  Buffer<C> scales(size, C(1));
  for (size_t i = 0; i < squared_norms.size(); ++i) {
    const double square = squared_norms[i];
    if (std::isnan(square)) continue;
    const int exponent = square <= 0             ? kUnderflown
                         : std::isfinite(square) ? -((std::ilogb(square) + 1) >> 1)
                                                 : kOverflown;
    scales[i] = std::ldexp(C(1), std::clamp(exponent, -kMost, kMost));
  }
  return scales;
}

template <typename T, typename C>
void accumulate(const GramKernels<T, C>& kernel, const T* window, int64_t stride, int64_t m, int64_t d,
                const std::vector<double>& squared_norms, double* gram) {
  const int64_t panel_rows = kernel.panel_rows, panels = ceil_div(m, panel_rows);
  const int64_t rows = panels * panel_rows, size = panels * (panels + 1) / 2 * panel_rows * panel_rows;
  const int64_t slabs = slab_count(m, d);
  const Buffer<C> scales = row_scales<C>(squared_norms, rows);
  Buffer<double> sums(slabs * size, 0.0), pair_sums(slabs * rows, 0.0);
  parallel_tasks(slabs, m * m * (d / slabs), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t first = d * s / slabs, last = d * (s + 1) / slabs;
      accumulate_slab(kernel, window + first, stride, m, last - first, scales.data(), sums.data() + s * size,
                      pair_sums.data() + s * rows);
    }
  });

  for (int64_t s = 1; s < slabs; ++s) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[s * size + i];
    for (int64_t i = 0; i < m; ++i) pair_sums[i] += pair_sums[s * rows + i];
  }
  // Scales are undone. Products of a row of zeros are zero: of pairs, whose sums are rounded one way and the pair sums
  // another, a little would be left.
  const bool paired = kernel.add_pair_sums != nullptr;
  std::vector<double> factors(m);
  for (int64_t i = 0; i < m; ++i) {
    const int64_t p = i / panel_rows, r = i % panel_rows;
    const double diagonal = sums[((p + 1) * (p + 2) / 2 - 1) * panel_rows * panel_rows + r * panel_rows + r];
    factors[i] = paired && diagonal == 0 && pair_sums[i] == 0 ? 0 : 1 / double(scales[i]);
  }
  const double* square = sums.data();
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t q = 0; q <= p; ++q, square += panel_rows * panel_rows)
      for (int64_t i = p * panel_rows; i < std::min((p + 1) * panel_rows, m); ++i)
        for (int64_t j = q * panel_rows; j < std::min((q + 1) * panel_rows, i + 1); ++j) {
          const double sum = square[(i % panel_rows) * panel_rows + j % panel_rows] - (pair_sums[i] + pair_sums[j]);
          gram[i * m + j] = gram[j * m + i] = sum * factors[i] * factors[j];
        }
}

Tensor gram_cpu(const Tensor& window, bool single, const std::optional<Tensor>& squared_norms) {
  check_rows("gram", "window", window);
  STD_TORCH_CHECK(!single || is_float(window), "gram: Parameter `single` should be False for a float64 window.");
  const int64_t m = window.size(0), d = window.size(1), stride = window.stride(0);
  if (squared_norms) {
    check_dense_f64("gram", "squared_norms", *squared_norms);
    check_shape("gram", "squared_norms", *squared_norms, {m});
  }
  Tensor gram = empty_f64(window, {m, m});
  const auto run = [&](auto* window_type, auto* arithmetic) {
    using T = element_t<decltype(window_type)>;
    using C = element_t<decltype(arithmetic)>;
    const T* x = elements<T>(window);
    const StaticKernels<T, C>& table = static_kernels<T, C>();
    const bool worth_a_pass = m >= kFewestPaired || squared_norms;
    const GramKernels<T, C>& kernel = worth_a_pass ? table.gram : table.gram_unpaired;
    std::vector<double> norms;
    if (kernel.add_pair_sums != nullptr) {
      norms.resize(m);
      if (squared_norms) std::copy_n(elements<double>(*squared_norms), m, norms.data());
      else mfac::squared_norms(x, stride, m, d, norms.data());
    }
    accumulate(kernel, x, stride, m, d, norms, gram.mutable_data_ptr<double>());
  };
  const auto in_double = static_cast<double*>(nullptr);
  dispatch_float(window, [&](auto* type) {
    if (single) run(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    else run(type, in_double);
  });
  return gram;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("gram", TORCH_BOX(&gram_cpu)); }

}  // namespace mfac
