"""`mfac.MFAC` against K-FAC, Shampoo, SOAP and first-order optimizers, on equal networks and data.

`python -m bench.peers` makes an environment of its own for the peers, runs there, and prints one
table. The rules:

1. The same weights at the start, the same batches of 128 images of Fashion-MNIST, float32 (MFAC's
   window also bf16). Every method works on a copy of the network of its own, as some libraries put
   hooks into it.
2. Two threads. All methods of a network in one process, in turn, in a new order each round: one
   step with an update of curvature and inverse, and one without, after a warm-up that does not
   count. Medians. A method that has used up its time leaves the rotation, but not before five
   rounds. The mean time of a step at update interval n is (update + (n - 1) · plain) / n. The
   overhead is what that has above SGD with momentum. Whole steps vary by more than most methods
   add, so for methods that leave the forward and backward pass alone it is the median of what runs
   after them, less SGD's; for asdfghjkl and singd, which work in that pass too, the median
   difference of whole steps of the same round.
3. MFAC has no update interval: each step takes in a gradient and has the new inverse. Its window is
   full when timed.
4. Empirical Fisher of the batch everywhere: curvlinops (`fisher_type="empirical"`), asdfghjkl
   (`FISHER_EMP`), singd (it has no other), nngeometry (its Jacobian backend applied to the
   log-likelihood of the true label, as it has only exact and sampled Fishers ready-made). Where a
   library takes the gradient from the same backward pass, it may (asdfghjkl, singd); curvlinops and
   nngeometry need a second one, which counts.
5. Damping 1e-3. Where (A ⊗ B) + λI can be inverted exactly it is one row (curvlinops, by
   eigendecompositions); the cheaper damping of both factors is another. No running averages where
   they can be left out.
6. Cheaper variants that a library documents are rows of their own: KFAC-reduce (curvlinops, singd)
   and SKFAC (asdfghjkl). They are other approximations than K-FAC as published, and all are
   measured alike. singd has dense factors, `kfac_like`, and `normalize_lr_cov` on as its
   documentation advises.
7. curvlinops, nngeometry and asdfghjkl change gradients, and SGD with momentum takes the step. What
   a method does not precondition is trained by SGD, and counted as not preconditioned; asdfghjkl
   has 2 x 2 blocks for normalisation layers.
8. heavyball runs eagerly (`compile_mode = None`): on a CPU its compiled step took as long, after
   half a minute or more of compiling. Its steps without update still add to the factors, as it does
   by itself. It has no plain Shampoo; KL-Shampoo stands in.
9. Memory: a fresh process for each method; peak resident memory above what the process held before
   the optimizer was made, one step of a forgotten copy having been taken; less the same of SGD.
10. IHVP error: relative error, in the 2-norm, of the method's own product against a float64 solve
    with the matrix that its own factors stand for, at 334 parameters. It says how exactly a method
    inverts its own matrix, not how near that is to the Fisher. Shampoo and SOAP apply inverse
    roots, so they have no such product.
11. A method whose loss on the warm-up batch does not fall is marked. Learning rates are not tuned:
    nothing here says which method trains best.
"""
