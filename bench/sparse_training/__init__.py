"""What training with masks promises, measured: accuracies of recipes, one-shot losses, overhead.

python -m bench.sparse_training fashion      ResNet-20 on Fashion-MNIST, equal steps, all recipes
python -m bench.sparse_training paragraphs   MiniLM on paragraphs of Wikipedia, GMP* and OBS
python -m bench.sparse_training overhead     of a step between changes, and of a large change

Finished runs are kept in bench/out/sparse_training.json and not repeated; with `--measured` those
behind the tables of the documentation count as finished. `--methods`,
`--sparsities`, `--seeds` and `--jobs` pick runs.
"""
