"""Fine-tune on demonstrations, in stages, and make the embedded model.

May import `axpo.evaluation`, `axpo.tasks`, `axpo.session` and the engine rooms. Start reading in
`fine_tune.py`: it runs the stages; `batches.py` and `demonstrations.py` make what they train on.
`embedded.py` builds a tiny model with random weights, `embedded_model.py` trains it.
"""
