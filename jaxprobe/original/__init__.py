"""The original study's protocol of delta perturbation, kept to the digit, with what its percentages mean."""
