"""The optimizers: each file has a plan within a budget and a search; `search` is what they share.

labelled bootstrap random_search mipro gepa   one file each; catalog lists them
search          metered models, the record of candidates, the best so far
transfer        searching from another program
reflection      the model that writes instructions
callback        ends an optimizer of DSPy when the model fails or the budget is spent
output_capture  keeps an optimizer of DSPy off the terminal
"""
