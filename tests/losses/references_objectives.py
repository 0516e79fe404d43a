"""Slow, obvious forms of the objectives: loops over views, samples, tokens and prototypes, after the definitions."""

import math

import torch
from torch import Tensor


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return −Σ_k p_k log softmax(logits / temperature)_k of one sample."""
    scaled = logits / temperature
    log_total = torch.log(torch.exp(scaled - scaled.max()).sum()) + scaled.max()
    total = scaled.new_zeros(())
    for k in range(len(target)):
        total = total - target[k] * (scaled[k] - log_total)
    return total


def dino(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over pairs of views v ≠ t and over images of the cross-entropy."""
    pairs = [(t, v) for t in range(len(teacher)) for v in range(len(student)) if t != v]
    images = student.shape[1]
    total = student.new_zeros(())
    for t, v in pairs:
        for b in range(images):
            total = total + cross_entropy(teacher[t, b], student[v, b], temperature)
    return total / (len(pairs) * images)


def ibot(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return Σ over views of the mean over masked tokens of the cross-entropy, over the number of views."""
    total = student.new_zeros(())
    row = 0
    for view in mask:
        count = int(view.sum())
        for _ in range(count):
            total = total + cross_entropy(teacher[row], student[row], temperature) / count
            row += 1
    return total / len(mask)


def sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Return Sinkhorn-Knopp in the multiplicative form of the papers; needs moderate logits."""
    q = torch.exp(logits / temperature).T
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / samples
    return (q * samples).T


def koleo(features: Tensor, eps: float) -> Tensor:
    """Return −mean log √(d² + eps²), d the distance to the nearest other unit vector."""
    unit = [f / f.norm() for f in features]
    total = features.new_zeros(())
    for i, own in enumerate(unit):
        distances = [(own - other).norm() for j, other in enumerate(unit) if j != i]
        nearest = min(range(len(distances)), key=lambda j: float(distances[j].detach()))
        total = total - torch.log(torch.sqrt(distances[nearest] ** 2 + eps**2))
    return total / len(unit)


def gram(student: Tensor, teacher: Tensor, level: str, negatives: str) -> Tensor:
    """Return the mean squared difference over all pairs of patches (of an image, or of the batch)."""
    if level == "batch":
        student, teacher = student.reshape(1, -1, student.shape[2]), teacher.reshape(1, -1, teacher.shape[2])
    total, count = student.new_zeros(()), 0
    for image in range(len(student)):
        for i in range(student.shape[1]):
            for j in range(student.shape[1]):
                s = torch.dot(student[image, i], student[image, j])
                s = s / (student[image, i].norm() * student[image, j].norm())
                t = torch.dot(teacher[image, i], teacher[image, j])
                t = t / (teacher[image, i].norm() * teacher[image, j].norm())
                if negatives == "clip":
                    s, t = torch.relu(s), torch.relu(t)
                if negatives == "clip-teacher":
                    s = s * 0 if s < 0 and t < 0 else s
                    t = torch.relu(t)
                total, count = total + (s - t) ** 2, count + 1
    return total / count


def reconstruction(prediction: Tensor, target: Tensor, distance: str, beta: float) -> Tensor:
    """Return the mean over masked patches of the mean voxel error."""
    total = prediction.new_zeros(())
    for row in range(len(prediction)):
        for voxel in range(prediction.shape[1]):
            error = (prediction[row, voxel] - target[row, voxel]).abs()
            if distance == "l2":
                error = error**2
            elif distance == "smooth-l1":
                error = error**2 / (2 * beta) if error < beta else error - beta / 2
            total = total + error / prediction.shape[1]
    return total / max(1, len(prediction))


def rank_me(features: Tensor) -> float:
    """Return exp of the entropy of the singular values' shares plus 1e-7."""
    singular = torch.linalg.svdvals(features.double())
    shares = [float(value / singular.sum()) + 1e-7 for value in singular]
    return math.exp(-sum(share * math.log(share) for share in shares))
