// Every operator of torch.ops.mfac, in one place. Shapes: window [m, d] with contiguous rows,
// float32 or float64; everything m x m is float64. Fake implementations: mfac/core/ops.py.
#include <torch/csrc/stable/library.h>

#if !defined(MFAC_LIBRARY)
#define MFAC_LIBRARY mfac  // the tests register the CUDA twins under another name too (cuda/cuda_adapter.h)
#endif

STABLE_TORCH_LIBRARY(MFAC_LIBRARY, m) {
  // -> squared row norms, [m]
  m.def("squared_norms(Tensor window) -> Tensor");
  // G Gᵀ -> [m, m]
  m.def("gram(Tensor window) -> Tensor");
  // inverse_factor [m, m] = L⁻¹ -> squared column norms of L⁻¹G, [d], and bounds on their rounding
  // errors, [d]; `single`: in float32 arithmetic
  m.def("whitened_norms(Tensor window, Tensor inverse_factor, bool single) -> (Tensor, Tensor)");
  // A window may also be bfloat16, float16, or int8 with scales [m, ceil(d / 1024)]: row r is then
  // scales[r, j / 1024]·window[r, j].
  //
  // vectors [k, d] -> vectors Gᵀ, [k, m]
  m.def("window_dot(Tensor window, Tensor vectors, Tensor? scales=None) -> Tensor");
  // out [k, d] <- alpha out + beta coefficients G, coefficients [k, m]
  m.def(
      "window_combine_(Tensor(a!) out, Tensor window, Tensor coefficients, float alpha, float beta, Tensor? "
      "scales=None) -> ()");
  // The weights of every parameter, columns[i] on, move: w <- decays[i] w - rates[i] v, along
  // v = beta coefficients G, coefficients [1, m], or along the average [d] that is given:
  // v <- momentum v + (1 - momentum) beta coefficients G
  m.def(
      "window_descend_(Tensor(a!)[] parameters, Tensor(b!)? average, Tensor window, Tensor coefficients, float beta, "
      "float momentum, int[] columns, float[] rates, float[] decays, Tensor? scales=None) -> ()");
  // memory is about to be written for the first time, all of it; its contents do not change
  m.def("prefer_huge_pages_(Tensor(a!) memory) -> ()");
  // gradient [d] is rounded into row `row` -> products of that row with every row, [m]; NaN where
  // nothing was written
  m.def("window_push_(Tensor(a!) window, int row, Tensor gradient, Tensor(b!)? scales=None) -> Tensor");
  // Sparse rows: values and uint16 offsets [m, blocks, kept] within blocks of block_size columns;
  // the rest as above. boundaries [blocks, ceil(block_size / 1024) - 1, m], uint16: entries of a
  // row before each tile of 1024 columns but the first. A push writes the row's; kernels that need
  // them and are not given them find them.
  m.def("topk_dot(Tensor values, Tensor indices, Tensor vectors, int block_size) -> Tensor");
  m.def(
      "topk_combine_(Tensor(a!) out, Tensor values, Tensor indices, Tensor coefficients, float alpha, float beta, int "
      "block_size, Tensor? boundaries=None) -> ()");
  // As window_descend_. With an average, weights that row `newest` carries move along v itself, and
  // their average becomes 0.
  m.def(
      "topk_descend_(Tensor(a!)[] parameters, Tensor(b!)? average, Tensor values, Tensor indices, Tensor coefficients, "
      "float beta, float momentum, int newest, int[] columns, float[] rates, float[] decays, int dim, int block_size, "
      "Tensor? boundaries=None) -> ()");
  // error <- error + gradient; its largest entries become row `row` and leave it
  m.def(
      "topk_push_(Tensor(a!) values, Tensor(b!) indices, Tensor(c!) error, int row, Tensor gradient, int "
      "block_size, Tensor(d!)? boundaries=None) -> Tensor");
  // row and column `row` of the Gram matrix become `products` [m]; `inverse` follows as the inverse
  // of shift I + gram. Lower triangles. -> the new pivot, [1]; NaN, and nothing changes, where a
  // product is NaN
  m.def("capacitance_replace_(Tensor(a!) inverse, Tensor(b!) gram, int row, Tensor products, float shift) -> Tensor");
  // vectors [k, m] -> their products with the inverse of shift I + gram, refined, [k, m], and the
  // largest of their backward errors, [1]
  m.def("capacitance_solve(Tensor inverse, Tensor gram, Tensor vectors, float shift) -> (Tensor, Tensor)");
  // Block-diagonal Fisher -> upper Cholesky factors R, RᵀR [blocks, r, r] with
  // r = min(m, block_size), and the failing pivot of each block, [blocks], -1 where there is none
  m.def("block_factor(Tensor window, int block_size, float damping, float num_terms) -> (Tensor, Tensor)");
  // vectors [k, d] float64 -> [k, d]
  m.def(
      "block_ihvp(Tensor window, Tensor factors, Tensor vectors, int block_size, float damping, float num_terms) -> "
      "Tensor");
  m.def("block_matvec(Tensor window, Tensor vectors, int block_size, float damping, float num_terms) -> Tensor");
  // -> [d]
  m.def(
      "block_inverse_diagonal(Tensor window, Tensor factors, int block_size, float damping, float num_terms) -> "
      "Tensor");
  // weights [d], inverse_diagonal [d] -> w²/(2 (F⁻¹)_pp), [d] float64
  m.def("obs_saliency(Tensor weights, Tensor inverse_diagonal) -> Tensor");
  // scores [outer, axis, inner] -> whether each is among the `keep` highest of its `group`
  // successive ones along the axis, or of as many as are left, bool; of equal ones the later is the
  // higher, and NaN is above infinity
  m.def("nm_mask(Tensor scores, int keep, int group) -> Tensor");
  // A layer's weight [rows, n] and H [n, n] of its inputs, rows on their own, all float64. With
  // keep > 0 at most `keep` of `group` successive columns stay, as in nm_mask. With scales and
  // zeros a value is (level - zero)·scale, level in 0 .. `levels`.
  //
  // A block of columns: weight w becomes q, carried [rows, width] from (w - q) R of the columns
  // before to that of these too, for factor [width, width] = R, H = R Rᵀ, upper triangular. kept
  // [rows, width] is read, or written where keep > 0; scales and zeros [rows]
  m.def(
      "obs_sweep_(Tensor(a!) weight, Tensor(b!) carried, Tensor factor, Tensor(c!) kept, int keep, int group, Tensor? "
      "scales=None, Tensor? zeros=None, int levels=0) -> ()");
  // inverse [n, n] = H⁻¹; dropped [rows, n]: gone beforehand; scales and zeros [rows, n] -> the
  // weights that went, [rows, count], -1 where none was left, what each raised δHδᵀ by, infinity
  // there, and the weights as they are then
  m.def(
      "obs_eliminate(Tensor weight, Tensor inverse, Tensor dropped, int count, int keep, int group, Tensor? "
      "scales=None, Tensor? zeros=None, int levels=0) -> (Tensor, Tensor, Tensor)");
  // matrix [n, n], of which the upper triangle is read, target and kept [rows, n] -> for the
  // columns S that a row keeps the x_S with matrix_SS x_S = target_S, 0 elsewhere; NaN where
  // matrix_SS is not positive definite
  m.def("restricted_solve(Tensor matrix, Tensor target, Tensor kept) -> Tensor");
}
