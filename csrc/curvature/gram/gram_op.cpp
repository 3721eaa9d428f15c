// gram(window) -> G Gᵀ in float64.
//
// The columns are cut into slabs, one task each: a thread packs a tile of its slab, adds the
// products of every pair of panels of the lower triangle to its own sums, all in its own L2, and
// goes on to the next tile. The slabs' sums are added in order. The number of slabs depends on the
// shape alone, so the last bit does not depend on the number of threads. Flops: m²d, half of a
// general product. Extra memory: slabs·(m²/2 + m·kTileColumns) float64.
#include "common/adapter.h"
#include "cpu/tile_prefetch.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 256;  // with m = 256 a packed tile takes 512 KiB
constexpr int64_t kDepth = 128;        // columns of two panels that are in L1 together

// As many slabs as keep threads busy and their sums, m²/2 each, within 32 MiB; four where m is
// larger than that allows.
int64_t slab_count(int64_t m, int64_t d) {
  const int64_t affordable = std::clamp<int64_t>((int64_t{1} << 23) / (m * m + 1), 4, 16);
  return std::min(affordable, std::max<int64_t>(1, ceil_div(d, 4 * kTileColumns)));
}

// The sums of one slab for the lower triangle: squares [panel_rows, panel_rows] of every pair of
// panels.
template <typename T>
class SlabSums {
 public:
  SlabSums(int64_t m, double* squares) : m_(m), squares_(squares) {}

  static int64_t size(int64_t m) {
    const int64_t panels = ceil_div(m, kernel().panel_rows);
    return panels * (panels + 1) / 2 * kernel().panel_rows * kernel().panel_rows;
  }

  // Adds the products over columns [0, cols) of a slab.
  void add(const T* window, int64_t stride, int64_t cols) {
    const int64_t width = kernel().panel_rows, panels = ceil_div(m_, width);
    Buffer<double> packed(panels * width * std::min(kTileColumns, cols));
    for (int64_t tile = 0; tile < cols; tile += kTileColumns) {
      const int64_t depth = std::min(kTileColumns, cols - tile), next = std::min(kTileColumns, cols - tile - depth);
      TilePrefetch ahead(window + tile + depth, stride * sizeof(T), m_, next * sizeof(T),
                         ceil_div(depth, kDepth) * panels * (panels + 1) / 2 * (width / kernel().tile_rows));
      for (int64_t row = 0; row < m_; row += width)
        kernel().pack(window + row * stride + tile, stride, std::min(width, m_ - row), depth,
                      packed.data() + row * depth);
      for (int64_t k = 0; k < depth; k += kDepth)
        add_packed(packed.data() + k * width, depth, std::min(kDepth, depth - k), ahead);
    }
  }

 private:
  static const GramKernels<T>& kernel() { return kernels<GramKernels<T>>(); }

  // Adds the products of all pairs of panels, `length` columns long each, over `depth` of the
  // columns.
  void add_packed(const double* packed, int64_t length, int64_t depth, TilePrefetch& ahead) {
    const int64_t width = kernel().panel_rows, tile_rows = kernel().tile_rows;
    double* square = squares_;
    for (int64_t p = 0; p < m_; p += width)
      for (int64_t q = 0; q <= p; q += width, square += width * width)
        for (int64_t i = 0; i < std::min(width, m_ - p); i += tile_rows) {
          ahead.step();
          kernel().tile(packed + p * length + i, packed + q * length, p == q ? i + tile_rows : width, depth,
                        square + i * width, width);
        }
  }

  int64_t m_;
  double* squares_;
};

template <typename T>
void gram(const T* window, int64_t stride, int64_t m, int64_t d, double* out) {
  const int64_t size = SlabSums<T>::size(m), slabs = slab_count(m, d);
  Buffer<double> sums(slabs * size, 0.0);
  parallel_tasks(slabs, m * m * (d / slabs), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t first = d * s / slabs, last = d * (s + 1) / slabs;
      SlabSums<T>(m, sums.data() + s * size).add(window + first, stride, last - first);
    }
  });
  for (int64_t s = 1; s < slabs; ++s)
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[s * size + i];

  const int64_t width = kernels<GramKernels<T>>().panel_rows;
  const double* square = sums.data();
  for (int64_t p = 0; p < m; p += width)
    for (int64_t q = 0; q <= p; q += width, square += width * width)
      for (int64_t i = p; i < std::min(p + width, m); ++i)
        for (int64_t j = q; j < std::min(q + width, i + 1); ++j)
          out[i * m + j] = out[j * m + i] = square[(i - p) * width + (j - q)];
}

Tensor gram_cpu(const Tensor& window) {
  check_rows("gram", "window", window);
  const int64_t m = window.size(0);
  Tensor out = empty_f64(window, {m, m});
  dispatch_float(window, [&](auto* type) {
    gram(elements<element_t<decltype(type)>>(window), window.stride(0), m, window.size(1),
         out.mutable_data_ptr<double>());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("gram", TORCH_BOX(&gram_cpu)); }

}  // namespace mfac
