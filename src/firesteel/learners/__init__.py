"""Learners: what is minimised. One visible dict; all of them run through `learners.learner.Learner`."""

OBJECTIVES: dict[str, str] = {
    "sft": "firesteel.learners.sft:SupervisedObjective",
    "policy_gradient": "firesteel.learners.policy_gradient:PolicyGradientObjective",
}
