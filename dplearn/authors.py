"""The authors' code and its variants, by the names of its scripts: their options, and what differs on purpose.

- ``adap_pos``: one learned split for the task;
- ``adap_ins_pos``: a split for each input;
- ``adap_ins_len``: a prefix with a size for each input;
- ``adap_ins_vec``: a prefix from a pool of 4, mixed by softmax of tanh for each input;
- ``adap_ins_vec_pos``: split and mixture (plain softmax) for each input;
- ``adap_pos_ins_vec``: one split for the task, mixture (plain softmax) for each input.

Length, pool, summary by the encoder (not standardized), random first logits, Gumbel-Softmax with straight-through
gradients, first temperature and parameter counts are theirs (adap_ins_len lacks their second controller, which does
nothing). On purpose these differ: evaluation is argmax without noise; a task's split is sampled for each instance, not
once per batch; the summary leaves padding out and is normalised; logits pass no ReLU; the order of the vectors is kept
for every split (theirs rotates); vectors that are not in use are dropped, not set to -1e20; a prompt starts from random
rows of the vocabulary, not from its first ones.
"""

# What all variants have and the package's defaults do not.
OF_AUTHORS = {
    "summary": "encoder", "standardize": False, "controller_init": "uniform", "estimator": "straight-through",
}  # fmt: skip
AUTHORS: dict[str, dict] = {
    "adap_pos": {"position": "task"},
    "adap_ins_pos": {"position": "instance"},
    "adap_ins_len": {"size": "instance"},
    "adap_ins_vec": {"vector": "instance", "mixing": "tanh"},
    "adap_ins_vec_pos": {"vector": "instance", "position": "instance", "init": "uniform"},
    "adap_pos_ins_vec": {"vector": "instance", "position": "task", "init": "uniform"},
}


def variant(name: str) -> dict:
    """The options of a variant; ValueError where the name is unknown, with a list of the names.

    >>> variant("adap_pos")["position"]
    'task'
    """
    if name not in AUTHORS:
        raise ValueError(f"name={name!r} is unknown, expected one of {list(AUTHORS)}")
    return OF_AUTHORS | AUTHORS[name]
