"""What a model will need and cost on each platform, before anything is built."""

from coldpress.plan.stage import Figure, Planned, PlanOptions, Row, plan

__all__ = ["Figure", "PlanOptions", "Planned", "Row", "plan"]
