"""The pruning accuracies that the defaults of `mfac.prune` are held to, each section a table.

python -m bench.pruning digits       the pretrained digit CNN, one call a sparsity, all defaults
python -m bench.pruning mlp          784-40-20-10 without biases on MNIST, three networks, 1 and
                                     15 stages
python -m bench.pruning sentences    MiniLM, paragraphs of Wikipedia, calibrated on news
python -m bench.pruning recurrent    a GRU that has to remember letters
python -m bench.pruning channels     whole rows and channels of small convolutional networks
python -m bench.pruning kinds        every kind of layer: pruned, 2:4, fine-tuned, exported,
                                     verified
python -m bench.pruning promises     memory and seconds against the plan; runs that are large,
                                     killed, or shared

`--sparsities`, `--methods` and `--networks` pick lines, `--set name=value` passes an argument to
`mfac.prune`.
"""
