"""The learner: outcomes become advantages, advantages an update of the ZeRO-3 policy, the update the engines' weights."""
