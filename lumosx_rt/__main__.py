from lumosx_rt.cli.main import main

main()
