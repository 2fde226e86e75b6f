"""Learners: what is minimised. One visible dict; all of them run through `learners.learner.Learner`.

`ppo` needs the old policy's distributions, so it comes with a learner of its own, `learners.ppo.PpoLearner`.
"""

OBJECTIVES: dict[str, str] = {
    "sft": "firesteel.learners.sft:SupervisedObjective",
    "policy_gradient": "firesteel.learners.policy_gradient:PolicyGradientObjective",
    "ppo": "firesteel.learners.ppo:PpoObjective",
}
