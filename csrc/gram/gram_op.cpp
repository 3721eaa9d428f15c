// gram(window, single) -> G Gᵀ, sums in float64, products of a float32 window in float64 or float32.
//
// The columns are cut into slabs, one task each: a thread packs a tile of its slab, adds the products of every
// pair of panels of the lower triangle to its own sums, all in its own L2, and goes on to the next tile. The slabs'
// sums are added in order. The number of slabs depends on the shape alone, so the last bit does not depend on the
// number of threads. Flops: m²d, half of a general product. Extra memory: slabs·(m²/2 + m·kTileColumns) float64.
#include "adapter.h"
#include "tile_prefetch.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 256;  // with m = 256 a packed tile takes 512 KiB

// Columns of a panel that a register tile sweeps before its sums go to float64, which takes longest in float32; there
// it sweeps a whole tile, in four sums of kSingleDepth products.
template <typename C>
constexpr int64_t kDepth = std::is_same_v<C, float> ? kTileColumns : 128;
static_assert(kTileColumns == 4 * kSingleDepth);

// As many slabs as keep threads busy and their sums, m²/2 each, within 32 MiB; four where m is larger than that allows.
int64_t slab_count(int64_t m, int64_t d) {
  const int64_t affordable = std::clamp<int64_t>((int64_t{1} << 23) / (m * m + 1), 4, 16);
  return std::min(affordable, std::max<int64_t>(1, ceil_div(d, 4 * kTileColumns)));
}

// square [panel_rows, panel_rows] += the products of two packed panels, the next tile being asked for in between
template <typename T, typename C>
void add_pair(const GramKernels<T, C>& kernel, const C* a, const C* b, int64_t depth, double* square,
              TilePrefetch& ahead) {
  for (int64_t i = 0; i < kernel.panel_rows; i += kernel.tile_rows) {
    ahead.step();
    kernel.rows(a, b, i, depth, square + i * kernel.panel_rows, kernel.panel_rows);
  }
}

// sums [pairs, panel_rows, panel_rows] += the products over the slab's columns
template <typename T, typename C>
void accumulate_slab(const T* window, int64_t stride, int64_t m, int64_t cols, double* sums) {
  const GramKernels<T, C>& kernel = static_kernels<T, C>().gram;
  const int64_t panel_rows = kernel.panel_rows, panels = ceil_div(m, panel_rows);
  Buffer<C> packed(panels * panel_rows * std::min(kTileColumns, cols));
  for (int64_t tile = 0; tile < cols; tile += kTileColumns) {
    const int64_t width = std::min(kTileColumns, cols - tile), next = std::min(kTileColumns, cols - tile - width);
    TilePrefetch ahead(window + tile + width, stride * sizeof(T), m, next * sizeof(T),
                       ceil_div(width, kDepth<C>) * panels * (panels + 1) / 2 * (panel_rows / kernel.tile_rows));
    for (int64_t p = 0; p < panels; ++p)
      kernel.pack(window + p * panel_rows * stride + tile, stride, std::min(panel_rows, m - p * panel_rows), width,
                  packed.data() + p * panel_rows * width);
    for (int64_t k = 0; k < width; k += kDepth<C>) {
      double* square = sums;
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t q = 0; q <= p; ++q, square += panel_rows * panel_rows)
          add_pair(kernel, packed.data() + (p * width + k) * panel_rows, packed.data() + (q * width + k) * panel_rows,
                   std::min(kDepth<C>, width - k), square, ahead);
    }
  }
}

template <typename T, typename C>
void accumulate(const T* window, int64_t stride, int64_t m, int64_t d, double* gram) {
  const int64_t panel_rows = static_kernels<T, C>().gram.panel_rows, panels = ceil_div(m, panel_rows);
  const int64_t size = panels * (panels + 1) / 2 * panel_rows * panel_rows;
  const int64_t slabs = slab_count(m, d);
  Buffer<double> sums(slabs * size, 0.0);
  parallel_tasks(slabs, m * m * (d / slabs), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t first = d * s / slabs, last = d * (s + 1) / slabs;
      accumulate_slab<T, C>(window + first, stride, m, last - first, sums.data() + s * size);
    }
  });

  for (int64_t s = 1; s < slabs; ++s)
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[s * size + i];
  const double* square = sums.data();
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t q = 0; q <= p; ++q, square += panel_rows * panel_rows)
      for (int64_t i = p * panel_rows; i < std::min((p + 1) * panel_rows, m); ++i)
        for (int64_t j = q * panel_rows; j < std::min((q + 1) * panel_rows, i + 1); ++j)
          gram[i * m + j] = gram[j * m + i] = square[(i % panel_rows) * panel_rows + j % panel_rows];
}

Tensor gram_cpu(const Tensor& window, bool single) {
  check_rows("gram", "window", window);
  STD_TORCH_CHECK(!single || is_float(window), "gram: Parameter `single` should be False for a float64 window.");
  const int64_t m = window.size(0), d = window.size(1), stride = window.stride(0);
  Tensor gram = empty_f64(window, {m, m});
  double* out = gram.mutable_data_ptr<double>();
  if (is_double(window)) accumulate<double, double>(elements<double>(window), stride, m, d, out);
  else if (single) accumulate<float, float>(elements<float>(window), stride, m, d, out);
  else accumulate<float, double>(elements<float>(window), stride, m, d, out);
  return gram;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("gram", TORCH_BOX(&gram_cpu)); }

}  // namespace mfac
