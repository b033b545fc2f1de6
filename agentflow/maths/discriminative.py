"""Losses over whole groups of completions: DisCO, DRPO and their hinge on the divergence. Pure functions of tensors.

Axes: S sampled tokens of a batch, U completions. They read the whole batch at once, so their coefficients [S] must be
taken over all of it, whatever the micro-batches of the model are.
"""

import torch
from torch import Tensor

from agentflow.maths.losses import KLEstimator, kl_estimate


def completion_scores(
    logprobs_S: Tensor, completions_S: Tensor, count: int, *, start_logprobs_S: Tensor | None = None
) -> Tensor:
    """Score each completion by its tokens, [U] float64 (DisCO, 2505.12366, section 4.1).

        mean_t log pi(o_t)                          "log-L"
        mean_t pi(o_t) / pi_start(o_t)              "L-ratio", if the start's log-probs are given

    Args:
        logprobs_S: [S] log-probs under the policy that is being updated, with gradient.
        completions_S: [S] completion of each token; -1 for a token that does not count.
        count: U. A completion without a token scores nan.
        start_logprobs_S: [S] log-probs under the weights that the iteration started from.
    """
    inside_S = completions_S >= 0
    values_S = logprobs_S if start_logprobs_S is None else (logprobs_S - start_logprobs_S).exp()
    index_S, kept_S = completions_S[inside_S], values_S[inside_S].double()
    sums_U = kept_S.new_zeros(count).index_add(0, index_S, kept_S)
    return sums_U / torch.bincount(index_S, minlength=count)


def discriminative(
    scores_U: Tensor,
    groups_U: Tensor,
    positive_U: Tensor,
    *,
    num_groups: int,
    tau: float | None,
    preference_U: Tensor | None = None,
) -> Tensor:
    """Return how much better right completions score than wrong ones of the same task, to be maximised; a scalar.

        J = 1/num_groups * sum_q [ sum_{P} omega s - tau log mean_{N} exp(s / tau) ]      (DisCO, 2505.12366, eq. 8)
        without tau                                ... - mean_{N} s                         (DisCO-b, eq. 6)
        omega = 1/|P|, or softmax(preference) within P                                      (DRPO, 2510.04474)

    A group without a right or without a wrong completion adds nothing and still counts in `num_groups`. The authors'
    code gives the logarithm as S / sg(S): its gradient is this one's, its value is not.

    Args:
        scores_U: [U] score of each completion, with gradient.
        groups_U: [U] task of each completion; -1 leaves it out.
        positive_U: [U] true where the completion is right.
        num_groups: Groups that are divided by.
        tau: Temperature: the smaller, the more the hardest negatives count; None takes their mean.
        preference_U: [U] what is preferred among right completions, divided by its temperature: DRPO has
            (1 - length / longest) / lambda.
    """
    total = scores_U.new_zeros(())
    for group in torch.unique(groups_U[groups_U >= 0]).tolist():
        mine_U = groups_U == group
        right, wrong = scores_U[mine_U & positive_U], scores_U[mine_U & ~positive_U]
        if not len(right) or not len(wrong):
            continue
        share = None if preference_U is None else preference_U[mine_U & positive_U].to(right).softmax(0)
        total = total + (right.mean() if share is None else (share * right).sum())
        total = total - (wrong.mean() if tau is None else _log_mean_exp(wrong, tau))
    return total / num_groups


def _log_mean_exp(values_N: Tensor, tau: float) -> Tensor:
    peak = values_N.detach().max()
    return peak + tau * torch.log(torch.exp((values_N - peak) / tau).mean())


def hinge_kl(
    logprobs_S: Tensor,
    start_logprobs_S: Tensor,
    weights_S: Tensor,
    *,
    delta: float,
    beta: float,
    estimator: KLEstimator = "k1",
    half: bool = False,
) -> Tensor:
    """Return the price of having moved further than `delta`, to be minimised; a scalar (DisCO, 2505.12366, eq. 10).

        KL = sum_s weight_s KL_s(pi_start || pi_theta)         beta [KL - delta]_+^2, or half of it

    The samples are the start's, so k1's gradient is unbiased. The authors' code multiplies the divergence by
    sg(beta [KL - delta]_+), whose gradient is that of half the square, not of the square that the paper prints.

    Args:
        logprobs_S: [S] log-probs under the policy that is being updated, with gradient.
        start_logprobs_S: [S] log-probs under the weights that the completions were sampled from.
        weights_S: [S] weight of each token, summing to 1 over the whole batch.
        delta: Divergence in nats that is free.
        beta: Price of the square of what is beyond.
        estimator: How the divergence of a token is estimated.
        half: Whether to take half of the square, as the code does.
    """
    divergence = (weights_S * kl_estimate(start_logprobs_S, logprobs_S, estimator)).sum()
    return (0.5 if half else 1.0) * beta * (divergence - delta).clamp(min=0.0).square()
