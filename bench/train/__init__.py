"""The paper's experiments at full size, for those who have the data: `torchrun -m bench train classification DATA`.

`command` has the options; `classification` and `detection` say what a batch, a loss and a measure are; `loop` trains
either, alone or in several processes; `checkpoint` and `processes` are what it needs for that. Only the tasks know
`data`, `boxes` and `models`. torchvision and pycocotools are imported where a run needs them.
"""
