"""Every optimizer as a generator of candidates: each file says what its candidates cost, and gives them one by one.

labelled knn bootstrap random_search mipro gepa simba   one file each; starts gives programs from elsewhere; catalog lists them
workshop        the rows, the metered models, and DSPy's optimizers off the terminal
transfer        taking over another program's instructions and demonstrations
reflection      whether the reflection model can write an instruction
callback        ends an optimizer of DSPy when the model fails or the budget is spent
output_capture  keeps an optimizer of DSPy off the terminal
"""
