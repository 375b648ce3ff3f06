"""To look at: the gradient on its way through time, unfolded graphs, what influences what, where attention looks."""

from throughtime.inspection.attention import attention
from throughtime.inspection.attention_pictures import draw_attention
from throughtime.inspection.edge_gradients import edge_gradients
from throughtime.inspection.flow_pictures import draw_flow
from throughtime.inspection.graph_pictures import draw_unfolding
from throughtime.inspection.influence import influence
from throughtime.inspection.unfolded_graph import recurrent_graph, unfolded_graph

__all__ = [
    "attention",
    "draw_attention",
    "draw_flow",
    "draw_unfolding",
    "edge_gradients",
    "influence",
    "recurrent_graph",
    "unfolded_graph",
]
