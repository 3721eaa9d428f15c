// The CPU kernels of every op, as one table of function pointers per instruction set.
//
// A kernel is serial and works on a range: threads, allocation and checks belong to the torch
// adapters (`<op>/<op>_op.cpp`). Kernels include no torch header, never throw and never allocate;
// a failure is reported as the failing index. All matrices are row-major; `stride` is the distance
// between rows in elements.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/formats.h"

namespace mfac {

constexpr int64_t kBlockTileColumns = 512;  // of a dual block, packed at a time
constexpr int64_t kCombineColumns = 16384;  // widest piece of window_combine: its sums are in L2
static_assert(kCombineColumns % kScaleColumns == 0);
template <typename T>
constexpr int64_t kCombineScratch =  // float64: sums, and of int8 rows two for the digits of a column (int8_digits.inl)
    (std::is_same_v<T, int8_t> ? 3 : 1) * kCombineColumns;

// The kernels that read a window of element type T, with vectors of type V.
template <typename T, typename V>
struct WindowKernels {
  // out[r] = Σ_j window[r, j]·v[j]                                    (window_dot/)
  void (*dot)(const T* window, int64_t stride, int64_t rows, int64_t cols, const V* v, double* out);
  // out[j] <- alpha·out[j] + beta·Σ_r coefficients[j / tile, r]·window[r, j], with `rows` coefficients for every
  // `tile` columns: one set, or for int8 as many as there are scales.  cols <= kCombineColumns  (window_combine/)
  // `scratch`: kCombineScratch<T> float64, on a line of cache.
  void (*combine)(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients, int64_t tile,
                  double alpha, double beta, V* out, double* scratch);
  // row[j] <- v[j] rounded to T, rounded[j] <- its value; T other than int8.          (window_push/)
  void (*round)(const V* v, int64_t cols, T* row, V* rounded);
};

// Largest magnitude and sum of squares of a vector; the sum is not finite if and only if an entry is not, or if it
// overflows.
struct Magnitude {
  double largest, sum_of_squares;
};

// G Gᵀ in arithmetic of type C; layouts stand in gram/.
template <typename T, typename C>
struct GramKernels {
  int64_t panel_rows, tile_rows;
  // Packs columns of `panel_rows` rows as [cols][panel_rows], zero below the last row. Where pair sums are wanted
  // (below) row r is multiplied by scales[r]; otherwise `scales` is not read.
  void (*pack)(const T* window, int64_t stride, int64_t rows, int64_t cols, const C* scales, C* panel);
  // sums[i, j] += Σ_k a[k, first + i]·b[k, j] for two packed panels, [tile_rows, panel_rows]; where a and b are the
  // same panel, at least the entries with j <= first + i. `stride` is that of sums.
  void (*rows)(const C* a, const C* b, int64_t first, int64_t depth, double* sums, int64_t stride);
  // sums[i] += what `rows` adds too much for row i of a panel, both as a row of a and as one of b (cpu/paired.inl).
  // Null: nothing. Depths before the last are multiples of kPairedDepth<C>.
  void (*add_pair_sums)(const C* panel, int64_t depth, double* sums);
};

// What whiten_tile takes for its rows.
template <typename C>
struct WhitenRows {
  const C *inverse_factor, *weights;
  const C *norms, *pair_sums;  // of the rows of L⁻¹, which are divided by them; null unless pair sums are wanted
};

// Squared column norms of L⁻¹G in arithmetic of type C; layouts stand in whitened_norms/.
template <typename T, typename C>
struct WhitenKernels {
  int64_t panel_columns, tile_rows;
  // Packs columns, and squares[j] <- Σ_k g_kj². Where pair sums are wanted column j is divided by units[j], a power of
  // two, which is set, as are pair_sums [ceil(rows / tile_rows)][panel_columns]; otherwise both are left alone.
  void (*pack)(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panel, C* squares, C* units,
               C* pair_sums);
  // With U_rj = Σ_{k<depth} inverse_factor[k, r]·panel[k, j] for the tile's rows r: norms[j] += Σ_r U_rj² and
  // weighted[j] += Σ_r weights[r]·|U_rj|. `pair_sums`: those of the tile.
  void (*tile)(const WhitenRows<C>& rows, int64_t depth, const C* panel, const C* units, const C* pair_sums, C* norms,
               C* weighted);
  // sums[r] += the pair sums of a tile of L⁻¹. Null: none are wanted.
  void (*add_pair_sums)(const C* inverse_factor, int64_t depth, double* sums);
};

// The static kernels for a window of type T in arithmetic of type C.
template <typename T, typename C>
struct StaticKernels {
  GramKernels<T, C> gram;
  GramKernels<T, C> gram_unpaired;  // of which no pair sums are wanted
  WhitenKernels<T, C> whiten;
};

// Form of one block's factor: kDual holds that of nλI + G_b G_bᵀ, kPrimal that of λI + G_bᵀ G_b / n.
enum class BlockForm { kDual, kPrimal };

// One diagonal block of the Fisher. `factor` is its upper Cholesky factor, of order rows (dual) or cols (primal); how
// much scratch each kernel needs stands above it.
template <typename T>
struct Block {
  const T* window;  // [rows, cols], the block's columns of the window
  int64_t stride, rows, cols;
  double damping, num_terms;
  BlockForm form;
  double* factor;
  int64_t factor_stride;
  double* scratch;
};

// Groups of `rows` scores of which `keep` are kept (nm_mask/): `along` of them along the axis, for each of `inner`
// columns and each outer index. Entries of a group lie `inner` apart.
struct NMGroups {
  int64_t along, inner, outer_stride, group_stride, rows, keep;
};

// The kernels of sparse rows (topk/): `count` entries of one row inside one block of columns, with uint16 offsets.
template <typename T, typename V>
struct TopKKernels {
  double (*dot)(const T* values, const uint16_t* indices, int64_t count, const V* v);
  void (*add)(double c, const T* values, const uint16_t* indices, int64_t count, double* sums);
};

template <typename T>
struct WindowTable {
  WindowKernels<T, float> with_f32;
  WindowKernels<T, double> with_f64;
  TopKKernels<T, float> topk_with_f32;  // all null for int8
  TopKKernels<T, double> topk_with_f64;
};

template <typename T>
struct TypedKernels {
  // block_fisher/
  int64_t (*block_factor)(const Block<T>& block);  // -1, or the index of the failing pivot
  void (*block_ihvp)(const Block<T>& block, const double* v, double* out);
  void (*block_matvec)(const Block<T>& block, const double* v, double* out);
  void (*block_inverse_diagonal)(const Block<T>& block, double* out);
};

struct Kernels {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  WindowTable<float> window_f32;
  WindowTable<double> window_f64;
  WindowTable<bf16> window_bf16;
  WindowTable<f16> window_f16;
  WindowTable<int8_t> window_i8;

  // weights[j] <- decay·weights[j] - rate·move[j]                     (window_combine/)
  void (*descend_f32)(const float* move, int64_t cols, double rate, double decay, float* weights);
  void (*descend_f64)(const double* move, int64_t cols, double rate, double decay, double* weights);

  // window_push/
  Magnitude (*magnitude_f32)(const float* v, int64_t cols);
  Magnitude (*magnitude_f64)(const double* v, int64_t cols);
  // row[j] <- v[j]/scale rounded, for at most kScaleColumns columns; the scale.
  float (*quantize)(const float* v, int64_t cols, int8_t* row);
  // out[r] = Σ_j window[r, j]·v[j], exactly, for at most kScaleColumns columns
  void (*int8_dot)(const int8_t* window, int64_t stride, int64_t rows, int64_t cols, const int8_t* v, int32_t* out);

  // out[r] = Σ_j window[r, j]²                                         (squared_norms/)
  void (*squared_norms_f32)(const float* window, int64_t stride, int64_t rows, int64_t cols, double* out);
  void (*squared_norms_f64)(const double* window, int64_t stride, int64_t rows, int64_t cols, double* out);
  // mask[e] <- whether scores[e] is kept, for all entries of the groups [begin, end), columns first      (nm_mask/)
  void (*nm_mask_f32)(const float* scores, const NMGroups& groups, int64_t begin, int64_t end, bool* mask);
  void (*nm_mask_f64)(const double* scores, const NMGroups& groups, int64_t begin, int64_t end, bool* mask);
  // gram/, whitened_norms/
  StaticKernels<float, float> static_f32;
  StaticKernels<float, double> static_f32_in_f64;
  StaticKernels<double, double> static_f64;

  // capacitance/: rows [begin, end) of a symmetric matrix of which the lower triangle is stored.
  // y += the part of A·x that those rows hold.
  void (*symmetric_matvec)(const double* lower, int64_t size, int64_t begin, int64_t end, const double* x, double* y);
  // A[i, :i+1] += alpha·a[i]·a + beta·b[i]·b
  void (*symmetric_rank2)(double* lower, int64_t size, int64_t begin, int64_t end, double alpha, const double* a,
                          double beta, const double* b);
};

// The table for this machine: the best instruction set that was built and that the CPU has, or the
// one that the environment variable MFAC_CPU_ISA names (portable, avx2, avx512, zen4).
const Kernels& kernels();

// Names of the instruction sets built, separated by commas, best last.
const char* isas_built();

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_zen4;  // AVX-512 where additions have units of their own (cpu/paired.inl)
#endif

template <typename T>
const TypedKernels<T>& kernels_for();
template <>
inline const TypedKernels<float>& kernels_for<float>() {
  return kernels().f32;
}
template <>
inline const TypedKernels<double>& kernels_for<double>() {
  return kernels().f64;
}

template <typename T, typename C>
const StaticKernels<T, C>& static_kernels() {
  if constexpr (std::is_same_v<C, float>) return kernels().static_f32;
  else if constexpr (std::is_same_v<T, float>) return kernels().static_f32_in_f64;
  else return kernels().static_f64;
}

template <typename V>
auto descend_kernel() {
  if constexpr (std::is_same_v<V, float>) return kernels().descend_f32;
  else return kernels().descend_f64;
}

template <typename T>
const WindowTable<T>& window_table() {
  if constexpr (std::is_same_v<T, float>) return kernels().window_f32;
  else if constexpr (std::is_same_v<T, double>) return kernels().window_f64;
  else if constexpr (std::is_same_v<T, bf16>) return kernels().window_bf16;
  else if constexpr (std::is_same_v<T, f16>) return kernels().window_f16;
  else return kernels().window_i8;
}

template <typename T, typename V>
const WindowKernels<T, V>& window_kernels() {
  if constexpr (std::is_same_v<V, float>) return window_table<T>().with_f32;
  else return window_table<T>().with_f64;
}

}  // namespace mfac
