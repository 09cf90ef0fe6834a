"""The optimizers, each a plan within a budget and a search; what they share is in `search`.

labelled bootstrap random_search mipro gepa   one file each; catalog lists them
search          metered models, the candidates' record, the best so far
transfer        searching from another program
reflection      the model that writes instructions
callback        ends an optimizer of DSPy's when the model fails or the budget is spent
output_capture  keeps an optimizer of DSPy's off the terminal
"""
