// The CPU kernels of every op, as one table of function pointers per instruction set.
//
// A kernel is serial and works on a range: threads, allocation and checks belong to the torch
// adapters (`<op>/<op>_op.cpp`). Kernels include no torch header, never throw and never allocate;
// a failure is reported as the failing index. All matrices are row-major; `stride` is the distance
// between rows in elements.
#pragma once

#include <cstdint>

namespace mfac {

constexpr int64_t kBlockTileColumns = 512;  // of a dual block, widened at a time
constexpr int64_t kCombineColumns = 2048;   // widest tile of window_combine: 16 KiB of accumulators

// The kernels that read a window of element type T, with vectors of type V.
template <typename T, typename V>
struct WindowKernels {
  // out[r] = Σ_j window[r, j]·v[j]                                    (window_dot/)
  void (*dot)(const T* window, int64_t stride, int64_t rows, int64_t cols, const V* v, double* out);
  // out[j] <- alpha·out[j] + beta·Σ_r coefficients[r]·window[r, j]     (window_combine/)
  void (*combine)(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients, double alpha,
                  double beta, V* out);
};

// Form of one block's factor: kDual holds chol(nλI + G_b G_bᵀ), kPrimal chol(λI + G_bᵀ G_b / n).
enum class BlockForm { kDual, kPrimal };

// One diagonal block of the Fisher. `factor` is its lower Cholesky factor, of order rows (dual) or cols (primal); how
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

template <typename T>
struct TypedKernels {
  WindowKernels<T, float> with_f32;
  WindowKernels<T, double> with_f64;
  // Packs columns of `gram_panel_rows` rows as [cols][gram_panel_rows], zero below the last row. (gram/)
  void (*gram_pack)(const T* window, int64_t stride, int64_t rows, int64_t cols, double* panel);
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

  // gram/: sums[i, j] += Σ_k a[k, i]·b[k, j] for two packed panels, [panel_rows, panel_rows]; where a and b
  // are the same panel, at least the entries with j <= i.
  int64_t gram_panel_rows;
  void (*gram_panels)(const double* a, const double* b, int64_t depth, double* sums);

  // capacitance/: rows [begin, end) of a symmetric matrix of which the lower triangle is stored.
  // y += the part of A·x that those rows hold.
  void (*symmetric_matvec)(const double* lower, int64_t size, int64_t begin, int64_t end, const double* x, double* y);
  // A[i, :i+1] += alpha·a[i]·a + beta·b[i]·b
  void (*symmetric_rank2)(double* lower, int64_t size, int64_t begin, int64_t end, double alpha, const double* a,
                          double beta, const double* b);
};

// The table for this machine: the best instruction set that was built and that the CPU has, or the
// one that the environment variable MFAC_CPU_ISA names (portable, avx2, avx512).
const Kernels& kernels();

// Names of the instruction sets built, separated by commas, best last.
const char* isas_built();

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
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

template <typename T, typename V>
const WindowKernels<T, V>& window_kernels() {
  if constexpr (sizeof(V) == sizeof(float)) return kernels_for<T>().with_f32;
  else return kernels_for<T>().with_f64;
}

}  // namespace mfac
